// Attention over a row of tokens in which responses share their prompt, on CPUs.
//
// The row is cut into segments: prompts and responses. A token sees its segment's prefix (a response's
// prompt; a prompt has none) and its own segment up to itself. So keys of a prompt are read where they lie,
// by all its responses.
//
// A block of queries meets all keys that it sees at once: its scores, softmax and products stay in the core's
// cache. The backward pass computes them again, from the log of each softmax's sum; no table of scores is
// kept.

#include "products.h"

#include <vector>

namespace {

constexpr int64_t QUERIES = 32; // of a block

struct Segment {
  int64_t begin, end, prefix_begin, prefix_end; // tokens of the row
  int64_t length() const { return end - begin; }
  int64_t prefix() const { return prefix_end - prefix_begin; }
};

struct Shape {
  int64_t heads, kv_heads, size, value_size;
  double scaling;
};

// A tensor (tokens, heads, size), with the numbers between two tokens and between two heads.
template <class T> struct Heads {
  T *data;
  int64_t token, head;
  T *at(int64_t t, int64_t h) const { return data + t * token + h * head; }
};

// `count` tokens of a head as rows of `width` numbers; zeros fill up `rows` and `width`.
template <class T>
void read(Heads<const T> from, int64_t begin, int64_t count, int64_t head, int64_t size, int64_t rows,
          int64_t width, T *to) {
  for (int64_t r = 0; r < rows; ++r, to += width) {
    const int64_t filled = r < count ? size : 0;
    if (filled)
      std::copy_n(from.at(begin + r, head), size, to);
    std::fill(to + filled, to + width, T{});
  }
}

// Have memory send what `read` would take: rows lie too far apart for a core to see them coming.
template <class T> void fetch(Heads<const T> from, int64_t begin, int64_t count, int64_t head, int64_t size) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t c = 0; c < size; c += 64 / sizeof(T))
      __builtin_prefetch(from.at(begin + r, head) + c);
}

template <class T, class Number>
void write(const Number *rows, int64_t width, Heads<T> to, int64_t begin, int64_t count, int64_t head,
           int64_t size) {
  for (int64_t r = 0; r < count; ++r) {
    T *row = to.at(begin + r, head);
    for (int64_t c = 0; c < size; ++c)
      narrow(rows[r * width + c], row + c);
  }
}

// Memory that grows to what was asked for.
template <class T> class Room {
public:
  T *of(int64_t count) {
    if (static_cast<int64_t>(data.size()) < count)
      data.resize(count);
    return data.data();
  }

private:
  std::vector<T> data;
};

// Keys or values of a head, segment by segment, as right factors of products.
template <class Math> class Packed {
public:
  void clear(int64_t width_) {
    data.clear();
    begins.clear();
    width = width_;
  }
  typename Math::Unit *next(int64_t rows) {
    begins.push_back(data.size());
    data.resize(data.size() + rows * width / Math::WIDTH);
    return data.data() + begins.back();
  }
  // Summed over the width, or over the segment's rows.
  Right<Math> over_columns(int64_t segment) const {
    return {data.data() + begins[segment], width / Math::WIDTH};
  }
  Right<Math> over_rows(int64_t segment, int64_t rows) const {
    return {data.data() + begins[segment], rows / Math::WIDTH};
  }

private:
  std::vector<typename Math::Unit> data;
  std::vector<size_t> begins;
  int64_t width = 0;
};

// One thread's memory.
template <class T, class Math> struct Scratch {
  using Number = typename Math::Number;
  using Unit = typename Math::Unit;
  Room<T> rows, query, grad;
  Room<Number> scores, slopes, out;
  Room<Unit> left, left_grad, over_keys, over_queries, slopes_over_queries, right_query, right_grad;
  std::vector<Number> dkey, dvalue;
  Packed<Math> keys_by_column, values_by_column, keys_by_row, values_by_row;
};

// Some queries of a segment, and the columns of their scores: those of the prefix, filled up to a multiple of
// LANES, then those of the segment up to the last query, filled up too.
struct Block {
  const Segment &segment;
  int64_t index, first, count, rows, prefix_columns, own_columns, columns;

  Block(const Segment &segment, int64_t index, int64_t first)
      : segment(segment), index(index), first(first), count(std::min(QUERIES, segment.length() - first)),
        rows(round_up(count, ROWS)), prefix_columns(round_up(segment.prefix(), LANES)),
        own_columns(round_up(first + count, LANES)), columns(prefix_columns + own_columns) {}

  int64_t token() const { return segment.begin + first; }

  // Queries times the columns of keys, or gradients times those of values: (rows, columns).
  template <class Math>
  void against(const typename Math::Unit *left, const Packed<Math> &packed,
               typename Math::Number *out) const {
    const Right<Math> own = packed.over_columns(index);
    const Left<Math> from{left, own.units, 1};
    if (prefix_columns)
      product<Math>(from, packed.over_columns(0), rows, own.units, prefix_columns, out, columns, false);
    product<Math>(from, own, rows, own.units, own_columns, out + prefix_columns, columns, false);
  }

  // Weights of all columns times rows of keys or values: (rows, width).
  template <class Math>
  void weighted(const typename Math::Unit *weights, const Packed<Math> &packed, int64_t width,
                typename Math::Number *out) const {
    const int64_t step = columns / Math::WIDTH, before = prefix_columns / Math::WIDTH;
    if (prefix_columns)
      product<Math>({weights, step, 1}, packed.over_rows(0, prefix_columns), rows, before, width, out, width,
                    false);
    product<Math>({weights + before, step, 1}, packed.over_rows(index, round_up(segment.length(), LANES)),
                  rows, own_columns / Math::WIDTH, width, out, width, prefix_columns > 0);
  }

  // What query `r` does not see: fillings, and later tokens of its segment.
  template <class Number> void hide(int64_t r, Number *scores) const {
    std::fill(scores + segment.prefix(), scores + prefix_columns, -INFINITY);
    std::fill(scores + prefix_columns + first + r + 1, scores + columns, -INFINITY);
  }
};

// A prompt and its responses, for one head of keys and values: work that shares nothing with other such work.
struct Work {
  const Segment *first, *last;
  int64_t kv_head;

  template <class Play> void each_block(const Shape &shape, Play play) const {
    const int64_t shared = shape.heads / shape.kv_heads;
    for (const Segment *segment = first; segment < last; ++segment)
      for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head)
        for (int64_t begin = 0; begin < segment->length(); begin += QUERIES)
          play(Block(*segment, segment - first, begin), head);
  }
};

template <class Play>
void in_parallel(const Segment *segments, int64_t count, int64_t kv_heads, int64_t threads, Play play) {
  std::vector<Work> works;
  for (const Segment *first = segments, *last; first < segments + count; first = last) {
    last = first + 1;
    while (last < segments + count && last->prefix())
      ++last;
    for (int64_t head = 0; head < kv_heads; ++head)
      works.push_back({first, last, head});
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (size_t i = 0; i < works.size(); ++i)
    play(works[i]);
}

template <class T, class Math>
void forward(const Work &work, const Shape &shape, Heads<const T> query, Heads<const T> key,
             Heads<const T> value, Heads<T> out, typename Math::Number *logsums, Scratch<T, Math> &scratch) {
  using Number = typename Math::Number;
  using Vector = typename Math::Vector;
  const int64_t width = round_up(shape.size, LANES), value_width = round_up(shape.value_size, LANES);
  scratch.keys_by_column.clear(width);
  scratch.values_by_row.clear(value_width);
  for (const Segment *s = work.first; s < work.last; ++s) {
    const int64_t rows = round_up(s->length(), LANES);
    T *numbers = scratch.rows.of(rows * std::max(width, value_width));
    read(key, s->begin, s->length(), work.kv_head, shape.size, rows, width, numbers);
    right_over_columns<Math>(numbers, rows, width, scratch.keys_by_column.next(rows));
    read(value, s->begin, s->length(), work.kv_head, shape.value_size, rows, value_width, numbers);
    right_over_rows<Math>(numbers, rows, value_width, scratch.values_by_row.next(rows));
  }
  work.each_block(shape, [&](const Block &block, int64_t head) {
    T *numbers = scratch.query.of(block.rows * width);
    auto *left = scratch.left.of(block.rows * width);
    read(query, block.token(), block.count, head, shape.size, block.rows, width, numbers);
    left_over_columns<Math>(numbers, block.rows, width, left);
    Number *scores = scratch.scores.of(block.rows * block.columns);
    block.against(left, scratch.keys_by_column, scores);
    Number sums[QUERIES];
    const Number scaling = shape.scaling;
    for (int64_t r = 0; r < block.count; ++r) {
      Number *row = scores + r * block.columns;
      block.hide(r, row);
      Vector most = Vector{} - INFINITY, sum{};
      for (int64_t c = 0; c < block.columns; c += LANES) {
        const Vector &here = *reinterpret_cast<Vector *>(row + c);
        most = here > most ? here : most;
      }
      const Number top = largest(most);
      for (int64_t c = 0; c < block.columns; c += LANES) {
        Vector &here = *reinterpret_cast<Vector *>(row + c);
        sum += here = exponential(scaling * (here - top));
      }
      sums[r] = total(sum);
      logsums[(block.token() + r) * shape.heads + head] = scaling * top + std::log(sums[r]);
    }
    auto *weights = scratch.over_keys.of(block.rows * block.columns);
    left_over_columns<Math>(scores, block.rows, block.columns, weights);
    Number *result = scratch.out.of(block.rows * value_width);
    block.weighted(weights, scratch.values_by_row, value_width, result);
    for (int64_t r = 0; r < block.count; ++r)
      for (int64_t c = 0; c < value_width; ++c)
        result[r * value_width + c] /= sums[r];
    write(result, value_width, out, block.token(), block.count, head, shape.value_size);
  });
}

template <class T, class Math>
void backward(const Work &work, const Shape &shape, Heads<const T> query, Heads<const T> key,
              Heads<const T> value, Heads<const T> out, const typename Math::Number *logsums,
              Heads<const T> grad, Heads<T> dquery, Heads<T> dkey, Heads<T> dvalue,
              Scratch<T, Math> &scratch) {
  using Number = typename Math::Number;
  using Vector = typename Math::Vector;
  const int64_t width = round_up(shape.size, LANES), value_width = round_up(shape.value_size, LANES);
  scratch.keys_by_column.clear(width);
  scratch.keys_by_row.clear(width);
  scratch.values_by_column.clear(value_width);
  std::vector<int64_t> places; // of the segments in what is summed up for keys and values
  int64_t all = 0;
  for (const Segment *s = work.first; s < work.last; ++s) {
    const int64_t rows = round_up(s->length(), LANES);
    T *numbers = scratch.rows.of(rows * std::max(width, value_width));
    read(key, s->begin, s->length(), work.kv_head, shape.size, rows, width, numbers);
    right_over_columns<Math>(numbers, rows, width, scratch.keys_by_column.next(rows));
    right_over_rows<Math>(numbers, rows, width, scratch.keys_by_row.next(rows));
    read(value, s->begin, s->length(), work.kv_head, shape.value_size, rows, value_width, numbers);
    right_over_columns<Math>(numbers, rows, value_width, scratch.values_by_column.next(rows));
    places.push_back(all);
    all += rows;
  }
  scratch.dkey.assign(all * width, 0);
  scratch.dvalue.assign(all * value_width, 0);
  work.each_block(shape, [&](const Block &block, int64_t head) {
    const int64_t rows = block.rows, columns = block.columns, units = rows / Math::WIDTH;
    T *numbers = scratch.query.of(rows * width), *grads = scratch.grad.of(rows * value_width);
    fetch(out, block.token(), block.count, head, shape.value_size);
    read(query, block.token(), block.count, head, shape.size, rows, width, numbers);
    read(grad, block.token(), block.count, head, shape.value_size, rows, value_width, grads);
    auto *left = scratch.left.of(rows * width), *left_grad = scratch.left_grad.of(rows * value_width);
    left_over_columns<Math>(numbers, rows, width, left);
    left_over_columns<Math>(grads, rows, value_width, left_grad);
    // Scores become weights; their gradients begin as those of the weights.
    Number *scores = scratch.scores.of(rows * columns), *slopes = scratch.slopes.of(rows * columns);
    block.against(left, scratch.keys_by_column, scores);
    block.against(left_grad, scratch.values_by_column, slopes);
    const Number scaling = shape.scaling;
    for (int64_t r = 0; r < block.count; ++r) {
      Number *row = scores + r * columns, *slope_row = slopes + r * columns, mean = 0;
      const T *result = out.at(block.token() + r, head);
#pragma omp simd reduction(+ : mean)
      for (int64_t c = 0; c < shape.value_size; ++c)
        mean += widen(grads[r * value_width + c]) * widen(result[c]);
      const Number logsum = logsums[(block.token() + r) * shape.heads + head];
      block.hide(r, row);
      for (int64_t c = 0; c < columns; c += LANES) {
        Vector &here = *reinterpret_cast<Vector *>(row + c),
               &slope = *reinterpret_cast<Vector *>(slope_row + c);
        here = exponential(scaling * here - logsum);
        slope = scaling * here * (slope - mean);
      }
    }
    // Rows that fill up the block have queries and gradients of zeros, so they add nothing to sums over
    // queries.
    auto *over_keys = scratch.over_keys.of(rows * columns);
    left_over_columns<Math>(slopes, rows, columns, over_keys);
    Number *result = scratch.out.of(rows * width);
    block.weighted(over_keys, scratch.keys_by_row, width, result);
    write(result, width, dquery, block.token(), block.count, head, shape.size);
    auto *weights = scratch.over_queries.of(rows * columns);
    auto *over_queries = scratch.slopes_over_queries.of(rows * columns);
    auto *right_query = scratch.right_query.of(rows * width),
         *right_grad = scratch.right_grad.of(rows * value_width);
    left_over_rows<Math>(scores, rows, columns, weights);
    left_over_rows<Math>(slopes, rows, columns, over_queries);
    right_over_rows<Math>(numbers, rows, width, right_query);
    right_over_rows<Math>(grads, rows, value_width, right_grad);
    auto collect = [&](int64_t column, int64_t keys, int64_t place) {
      product<Math>({weights + column, 1, columns}, {right_grad, units}, keys, units, value_width,
                    scratch.dvalue.data() + place * value_width, value_width, true);
      product<Math>({over_queries + column, 1, columns}, {right_query, units}, keys, units, width,
                    scratch.dkey.data() + place * width, width, true);
    };
    if (block.prefix_columns)
      collect(0, block.prefix_columns, 0);
    collect(block.prefix_columns, block.own_columns, places[block.index]);
  });
  for (const Segment *s = work.first; s < work.last; ++s) {
    const int64_t place = places[s - work.first];
    write(scratch.dkey.data() + place * width, width, dkey, s->begin, s->length(), work.kv_head, shape.size);
    write(scratch.dvalue.data() + place * value_width, value_width, dvalue, s->begin, s->length(),
          work.kv_head, shape.value_size);
  }
}

// What is called from outside: pointers to tensors, and for each its numbers between two tokens and between
// two heads.
struct Tensors {
  void *const *data;
  const int64_t *strides;
  template <class T> Heads<T> heads(int i) const {
    return {static_cast<T *>(data[i]), strides[2 * i], strides[2 * i + 1]};
  }
  template <class T> T *whole(int i) const { return static_cast<T *>(data[i]); }
};

template <class T, class Math>
void run_forward(const Tensors &tensors, const Segment *segments, int64_t count, const Shape &shape,
                 int64_t threads) {
  in_parallel(segments, count, shape.kv_heads, threads, [&](const Work &work) {
    static thread_local Scratch<T, Math> scratch;
    forward<T, Math>(work, shape, tensors.heads<const T>(0), tensors.heads<const T>(1),
                     tensors.heads<const T>(2), tensors.heads<T>(3), tensors.whole<typename Math::Number>(4),
                     scratch);
  });
}

template <class T, class Math>
void run_backward(const Tensors &tensors, const Segment *segments, int64_t count, const Shape &shape,
                  int64_t threads) {
  in_parallel(segments, count, shape.kv_heads, threads, [&](const Work &work) {
    static thread_local Scratch<T, Math> scratch;
    backward<T, Math>(work, shape, tensors.heads<const T>(0), tensors.heads<const T>(1),
                      tensors.heads<const T>(2), tensors.heads<const T>(3),
                      tensors.whole<const typename Math::Number>(4), tensors.heads<const T>(5),
                      tensors.heads<T>(6), tensors.heads<T>(7), tensors.heads<T>(8), scratch);
  });
}

} // namespace

// `bytes` of a number: 2 (bfloat16), 4 or 8. Tensors are query, key, value, out and logsums (tokens, heads;
// float32, or float64 as the others), and backward also the gradients of out, query, key and value.
// `segments` has four numbers each.
#define IRIS_EXPORT(NAME)                                                                                    \
  extern "C" void iris_row_attention_##NAME(                                                                 \
      int bytes, void *const *data, const int64_t *strides, const int64_t *rows, int64_t count,              \
      int64_t heads, int64_t kv_heads, int64_t size, int64_t value_size, double scaling, int64_t threads) {  \
    const auto *segments = reinterpret_cast<const Segment *>(rows);                                          \
    const Tensors tensors{data, strides};                                                                    \
    const Shape shape{heads, kv_heads, size, value_size, scaling};                                           \
    if (bytes == 2)                                                                                          \
      run_##NAME<BFloat16, OfBFloat16>(tensors, segments, count, shape, threads);                            \
    if (bytes == 4)                                                                                          \
      run_##NAME<float, Plain<float>>(tensors, segments, count, shape, threads);                             \
    if (bytes == 8)                                                                                          \
      run_##NAME<double, Plain<double>>(tensors, segments, count, shape, threads);                           \
  }
IRIS_EXPORT(forward)
IRIS_EXPORT(backward)
