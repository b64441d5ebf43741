// Matrix products of small blocks that stay in a core's cache.
//
// A product sums over one axis. Its factors are laid out in "units": WIDTH numbers that are neighbours along
// the summed axis. In bfloat16 a unit is a pair where the processor multiplies pairs (AVX512_BF16);
// everywhere else it is a number. The right factor lies in panels of LANES columns, so that a row of a panel
// fills a vector.

#pragma once

#include "numbers.h"

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define IRIS_PAIRS
#endif

#define IRIS_UNROLL _Pragma("GCC unroll 8")

// A tile's rows and most panels: their sums fit in the processor's registers, which are 32, or 16 on x86
// without AVX-512.
constexpr int64_t ROWS = 4;
#if defined(__x86_64__) && !defined(__AVX512F__)
constexpr int64_t MOST_PANELS = 3;
#else
constexpr int64_t MOST_PANELS = 4;
#endif

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// A format of products: what is summed up (Number), what is multiplied (Unit), and sums of a panel's
// columns (Vector). `unit` makes one of numbers `step` apart, as a tensor has them or as they are summed up.
template <class T> struct Plain {
  using Number = T;
  using Unit = T;
  using Vector = ::Vector<T>;
  static constexpr int64_t WIDTH = 1;
  template <class From> static Unit unit(const From *numbers, int64_t) { return widen(*numbers); }
  static Vector add(Vector sums, Unit left, const Unit *right) {
    return sums + left * *reinterpret_cast<const Vector *>(right);
  }
};

#ifdef IRIS_PAIRS
struct Pairs {
  using Number = float;
  using Unit = uint32_t;
  using Vector = ::Vector<float>;
  static constexpr int64_t WIDTH = 2;
  static Unit unit(const BFloat16 *numbers, int64_t step) {
    return numbers[0].bits | static_cast<Unit>(numbers[step].bits) << 16;
  }
  static Unit unit(const float *numbers, int64_t step) {
    return rounded(numbers[0]) | rounded(numbers[step]) << 16;
  }
  static Vector add(Vector sums, Unit left, const Unit *right) {
    const auto factor = (__m512bh)_mm512_set1_epi32(left), columns = (__m512bh)_mm512_loadu_si512(right);
    return (Vector)_mm512_dpbf16_ps((__m512)sums, factor, columns);
  }
};
using OfBFloat16 = Pairs;
#else
using OfBFloat16 = Plain<float>;
#endif

// The layouts of a product's factors, made from `count` rows of `width` numbers. Summed over is the width
// (..._columns) or the count (..._rows), which has to be a multiple of WIDTH; other sides of a right factor
// are multiples of LANES.

template <class Math, class From>
void left_over_columns(const From *rows, int64_t count, int64_t width, typename Math::Unit *to) {
  for (int64_t u = 0; u < count * width / Math::WIDTH; ++u)
    to[u] = Math::unit(rows + u * Math::WIDTH, 1);
}

template <class Math, class From>
void left_over_rows(const From *rows, int64_t count, int64_t width, typename Math::Unit *to) {
  for (int64_t r = 0; r < count; r += Math::WIDTH, to += width)
    for (int64_t c = 0; c < width; ++c)
      to[c] = Math::unit(rows + r * width + c, width);
}

template <class Math, class From>
void right_over_rows(const From *rows, int64_t count, int64_t width, typename Math::Unit *to) {
  for (int64_t panel = 0; panel < width; panel += LANES)
    for (int64_t r = 0; r < count; r += Math::WIDTH, to += LANES)
      for (int64_t lane = 0; lane < LANES; ++lane)
        to[lane] = Math::unit(rows + r * width + panel + lane, width);
}

template <class Math, class From>
void right_over_columns(const From *rows, int64_t count, int64_t width, typename Math::Unit *to) {
  for (int64_t panel = 0; panel < count; panel += LANES)
    for (int64_t c = 0; c < width; c += Math::WIDTH, to += LANES)
      for (int64_t lane = 0; lane < LANES; ++lane)
        to[lane] = Math::unit(rows + (panel + lane) * width + c, 1);
}

template <class Math> struct Left {
  const typename Math::Unit *data;
  int64_t row, step; // units between two rows, and between two units of a row
};

template <class Math> struct Right {
  const typename Math::Unit *data;
  int64_t units; // of a panel's column
};

// A tile of ROWS and up to MOST_PANELS, whose sums stay in registers.
template <class Math, int PANELS>
inline void tile(Left<Math> left, Right<Math> right, int64_t units, typename Math::Number *out,
                 int64_t stride, bool add) {
  using Vector = typename Math::Vector;
  Vector sums[ROWS][PANELS];
  IRIS_UNROLL for (int64_t r = 0; r < ROWS; ++r) for (int p = 0; p < PANELS; ++p) sums[r][p] =
      add ? *reinterpret_cast<Vector *>(out + r * stride + p * LANES) : Vector{};
  for (int64_t u = 0; u < units; ++u)
    IRIS_UNROLL for (int64_t r = 0; r < ROWS; ++r) for (int p = 0; p < PANELS; ++p) sums[r][p] = Math::add(
        sums[r][p], left.data[r * left.row + u * left.step], right.data + (p * right.units + u) * LANES);
  IRIS_UNROLL for (int64_t r = 0; r < ROWS; ++r) for (int p = 0; p < PANELS; ++p) *
      reinterpret_cast<Vector *>(out + r * stride + p * LANES) = sums[r][p];
}

// out (rows, columns) = left · right, or += with `add`. Sums run over `units`, rows are a multiple of ROWS,
// columns of LANES.
template <class Math>
void product(Left<Math> left, Right<Math> right, int64_t rows, int64_t units, int64_t columns,
             typename Math::Number *out, int64_t stride, bool add) {
  for (int64_t c = 0; c < columns; c += MOST_PANELS * LANES)
    for (int64_t r = 0; r < rows; r += ROWS) {
      const Left<Math> from{left.data + r * left.row, left.row, left.step};
      const Right<Math> panels{right.data + c * right.units, right.units};
      auto *to = out + r * stride + c;
      switch (std::min<int64_t>(MOST_PANELS, (columns - c) / LANES)) {
      case 4:
        tile<Math, 4>(from, panels, units, to, stride, add);
        break;
      case 3:
        tile<Math, 3>(from, panels, units, to, stride, add);
        break;
      case 2:
        tile<Math, 2>(from, panels, units, to, stride, add);
        break;
      default:
        tile<Math, 1>(from, panels, units, to, stride, add);
      }
    }
}
