// Matrix products of small blocks that stay in a core's cache.
//
// A product sums over one axis. Its factors are laid out in "units": WIDTH numbers that are neighbours along
// the summed axis. In bfloat16 a unit is a pair where the processor multiplies pairs (AVX512_BF16);
// everywhere else it is a number. The right factor lies in panels of 16 columns, so that a row of a panel
// fills a vector.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define IRIS_PAIRS
#endif

#define IRIS_UNROLL _Pragma("GCC unroll 8")

constexpr int64_t LANES = 16; // columns of a panel
constexpr int64_t ROWS = 4;   // rows of a tile

inline int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

struct BFloat16 {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// The upper half of a float32, rounded to nearest, ties to even.
inline uint32_t rounded(float value) {
  const uint32_t bits = bits_of(value), nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : nearest; // NaN
}

inline double widen(double value) { return value; }
inline float widen(float value) { return value; }
inline float widen(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline void narrow(double value, double *to) { *to = value; }
inline void narrow(float value, float *to) { *to = value; }
inline void narrow(float value, BFloat16 *to) { to->bits = static_cast<uint16_t>(rounded(value)); }

// A format of products: what is summed up (Number), what is multiplied (Unit), and sums of 16 columns
// (Vector).
template <class T> struct Plain {
  using Number = T;
  using Unit = T;
  typedef T Vector __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T)), may_alias));
  static constexpr int64_t WIDTH = 1;
  static Unit unit(const T *numbers, int64_t) { return *numbers; }
  static Vector add(Vector sums, Unit left, const Unit *right) {
    return sums + left * *reinterpret_cast<const Vector *>(right);
  }
};

#ifdef IRIS_PAIRS
struct Pairs {
  using Number = float;
  using Unit = uint32_t;
  using Vector = Plain<float>::Vector;
  static constexpr int64_t WIDTH = 2;
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

inline Plain<double>::Vector exponential(Plain<double>::Vector x) {
  for (int64_t lane = 0; lane < LANES; ++lane)
    x[lane] = std::exp(x[lane]);
  return x;
}

// e^x = 2^n · e^r with |r| <= ½ ln 2: e^r by a polynomial, 2^n by its bits. To 3e-7 of the result up to x =
// 88, 0 below -87.
inline Plain<float>::Vector exponential(Plain<float>::Vector x) {
  using Vector = Plain<float>::Vector;
  typedef int32_t Bits __attribute__((vector_size(sizeof(Vector))));
  const float round = 0x1.8p23f; // added and taken away again, it leaves an integer
  const Vector n = (x * 1.44269504f + round) - round;
  const Vector r = (x - n * 0.693145752f) - n * 1.42860677e-6f; // ln 2 in two parts
  Vector sum = Vector{} + 0.00136976f;
  for (float next : {0.00837312f, 0.04166684f, 0.16666668f, 0.5f, 1.0f, 1.0f})
    sum = sum * r + next;
  const Bits power = (__builtin_convertvector(n, Bits) + 127) << 23;
  return x < -87.0f ? Vector{} : sum * (Vector)power;
}

template <class Vector> auto largest(Vector values) {
  auto most = values[0];
  for (int64_t lane = 1; lane < LANES; ++lane)
    most = std::max(most, values[lane]);
  return most;
}

template <class Vector> auto total(Vector values) {
  auto sum = values[0];
  for (int64_t lane = 1; lane < LANES; ++lane)
    sum += values[lane];
  return sum;
}

// The layouts of a product's factors, made from `count` rows of `width` numbers. Summed over is the width
// (..._columns) or the count (..._rows), which has to be a multiple of WIDTH; other sides of a right factor
// are multiples of 16.

template <class Math>
void left_over_columns(const typename Math::Number *rows, int64_t count, int64_t width,
                       typename Math::Unit *to) {
  for (int64_t u = 0; u < count * width / Math::WIDTH; ++u)
    to[u] = Math::unit(rows + u * Math::WIDTH, 1);
}

template <class Math>
void left_over_rows(const typename Math::Number *rows, int64_t count, int64_t width,
                    typename Math::Unit *to) {
  for (int64_t r = 0; r < count; r += Math::WIDTH, to += width)
    for (int64_t c = 0; c < width; ++c)
      to[c] = Math::unit(rows + r * width + c, width);
}

template <class Math>
void right_over_rows(const typename Math::Number *rows, int64_t count, int64_t width,
                     typename Math::Unit *to) {
  for (int64_t panel = 0; panel < width; panel += LANES)
    for (int64_t r = 0; r < count; r += Math::WIDTH, to += LANES)
      for (int64_t lane = 0; lane < LANES; ++lane)
        to[lane] = Math::unit(rows + r * width + panel + lane, width);
}

template <class Math>
void right_over_columns(const typename Math::Number *rows, int64_t count, int64_t width,
                        typename Math::Unit *to) {
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

// A tile of 4 rows and up to 4 panels, whose sums stay in registers.
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

// out (rows, columns) = left · right, or += with `add`. Sums run over `units`, rows are a multiple of 4,
// columns of 16.
template <class Math>
void product(Left<Math> left, Right<Math> right, int64_t rows, int64_t units, int64_t columns,
             typename Math::Number *out, int64_t stride, bool add) {
  for (int64_t c = 0; c < columns; c += 4 * LANES)
    for (int64_t r = 0; r < rows; r += ROWS) {
      const Left<Math> from{left.data + r * left.row, left.row, left.step};
      const Right<Math> panels{right.data + c * right.units, right.units};
      auto *to = out + r * stride + c;
      switch (std::min<int64_t>(4, (columns - c) / LANES)) {
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
