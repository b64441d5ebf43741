// log softmax of a row of logits at one label, on CPUs.
//
// A row stays in the core's cache while it is read twice: for its largest logit, and for the log of its
// softmax's sum. From that log the backward pass has the softmax again; no wider copy of the table is kept.

#include "numbers.h"

namespace {

// LANES neighbours, and what is made of them.
template <class T> Vector<T> read(const T *from) { return *reinterpret_cast<const Vector<T> *>(from); }
template <class T> void write(Vector<T> numbers, T *to) { *reinterpret_cast<Vector<T> *>(to) = numbers; }

Vector<float> read(const BFloat16 *from) {
  const auto halves = *reinterpret_cast<const Vector<uint16_t> *>(from);
  return (Vector<float>)(__builtin_convertvector(halves, Vector<uint32_t>) << 16);
}
void write(Vector<float> numbers, BFloat16 *to) {
  const auto bits = (Vector<uint32_t>)numbers, nearest = bits + 0x7fff + ((bits >> 16) & 1);
  const auto kept = numbers == numbers ? nearest : bits | 0x400000; // NaN
  *reinterpret_cast<Vector<uint16_t> *>(to) = __builtin_convertvector(kept >> 16, Vector<uint16_t>);
}

template <class T> using Wide = decltype(widen(T{}));

// Calls play(block, place) for the row's logits, LANES at a time; the last block is filled up with -inf.
template <class T, class Play> void each_block(const T *row, int64_t size, Play play) {
  int64_t v = 0;
  for (; v + LANES <= size; v += LANES)
    play(read(row + v), v);
  if (v == size)
    return;
  auto rest = Vector<Wide<T>>{} - INFINITY;
  for (int64_t lane = 0; v + lane < size; ++lane)
    rest[lane] = widen(row[v + lane]);
  play(rest, v);
}

template <class T>
void forward(const T *logits, int64_t size, int64_t label, double scaling, Wide<T> *logprob,
             Wide<T> *logsum) {
  using Number = Wide<T>;
  const Number factor = scaling;
  Vector<Number> most = Vector<Number>{} - INFINITY, sum{};
  each_block(logits, size, [&](auto here, int64_t) { most = here > most ? here : most; });
  const Number top = largest(most);
  each_block(logits, size, [&](auto here, int64_t) { sum += exponential(factor * (here - top)); });
  *logsum = factor * top + std::log(total(sum));
  *logprob = factor * widen(logits[label]) - *logsum;
}

template <class T>
void backward(const T *logits, int64_t size, int64_t label, double scaling, Wide<T> logsum, Wide<T> grad,
              T *dlogits) {
  using Number = Wide<T>;
  const Number factor = scaling, slope = factor * grad;
  each_block(logits, size, [&](auto here, int64_t v) {
    const Vector<Number> slopes = -slope * exponential(factor * here - logsum);
    if (v + LANES <= size)
      return write(slopes, dlogits + v);
    for (int64_t lane = 0; v + lane < size; ++lane)
      narrow(slopes[lane], dlogits + v + lane);
  });
  narrow(slope - slope * std::exp(factor * widen(logits[label]) - logsum), dlogits + label);
}

} // namespace

// Log-probs, logs of sums and their gradients are float32, or float64 as the logits.
#define IRIS_EXPORT(NAME, T)                                                                                 \
  extern "C" void iris_label_logprobs_forward_##NAME(const T *logits, const int64_t *labels, int64_t rows,   \
                                                     int64_t size, double scaling, int64_t threads,          \
                                                     Wide<T> *logprobs, Wide<T> *logsums) {                  \
    _Pragma("omp parallel for num_threads(threads)") for (int64_t r = 0; r < rows; ++r)                      \
        forward(logits + r * size, size, labels[r], scaling, logprobs + r, logsums + r);                     \
  }                                                                                                          \
  extern "C" void iris_label_logprobs_backward_##NAME(                                                       \
      const T *logits, const int64_t *labels, int64_t rows, int64_t size, double scaling, int64_t threads,   \
      const Wide<T> *logsums, const Wide<T> *grads, T *dlogits) {                                            \
    _Pragma("omp parallel for num_threads(threads)") for (int64_t r = 0; r < rows; ++r)                      \
        backward(logits + r * size, size, labels[r], scaling, logsums[r], grads[r], dlogits + r * size);     \
  }
IRIS_EXPORT(bfloat16, BFloat16)
IRIS_EXPORT(float32, float)
IRIS_EXPORT(float64, double)
