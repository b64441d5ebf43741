// Numbers as tensors have them, and the vectors in which kernels compute.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// Numbers of a vector: as many of float32 as a register of the processor holds. The compiler takes longer
// ones apart, comparisons number by number.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif

template <class Number> struct Lanes {
  typedef Number Vector
      __attribute__((vector_size(LANES * sizeof(Number)), aligned(sizeof(Number)), may_alias));
};
template <class Number> using Vector = typename Lanes<Number>::Vector;

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

inline Vector<double> exponential(Vector<double> x) {
  for (int64_t lane = 0; lane < LANES; ++lane)
    x[lane] = std::exp(x[lane]);
  return x;
}

// e^x = 2^n · e^r with |r| <= ½ ln 2: e^r by a polynomial, 2^n by its bits. To 3e-7 of the result up to x =
// 88, 0 below -87.
inline Vector<float> exponential(Vector<float> x) {
  const float round = 0x1.8p23f; // added and taken away again, it leaves an integer
  const Vector<float> n = (x * 1.44269504f + round) - round;
  const Vector<float> r = (x - n * 0.693145752f) - n * 1.42860677e-6f; // ln 2 in two parts
  Vector<float> sum = Vector<float>{} + 0.00136976f;
  for (float next : {0.00837312f, 0.04166684f, 0.16666668f, 0.5f, 1.0f, 1.0f})
    sum = sum * r + next;
  const Vector<int32_t> power = (__builtin_convertvector(n, Vector<int32_t>) + 127) << 23;
  return x < -87.0f ? Vector<float>{} : sum * (Vector<float>)power;
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
