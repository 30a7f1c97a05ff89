// Attention of rows of queries to a segment of keys and values in float32; attention.py says what is computed.
//
// Some rows go over all columns together: scores, their largest, exponentials, values. Columns that none of the rows sees
// are not read. What comes of a row does not depend on the rows beside it, to the bit.

#pragma once

#include <cstring>
#include <utility>
#include <vector>

#include "pieces.h"

namespace attention {

constexpr int kRows = 6;  // that go together
constexpr float kMasked = -1e30f;  // attention.MASKED

struct Work {
  const float* query;  // [S, K, R, h]
  const float* key;  // [B, K, panels, h, kWidth], T columns
  const float* value;  // [B, K, T, h]
  const bool* visible;  // [M, Q, T]; M divides S, and Q is 1 or divides R
  float* mixed;  // [S, K, R, h]
  float* peak;  // [S, K, R]
  float* total;  // [S, K, R]
  int64_t samples, batch, heads, each, size, time, masks, queries;

  int64_t share() const { return samples / batch; }  // samples that read the same keys and values
  int64_t rows() const { return share() * each; }  // of a context and head
  int64_t tiles() const { return (rows() + kRows - 1) / kRows; }
};

// Memory of a thread's own, reused from tile to tile.
struct Scratch {
  std::vector<float> scores;  // [kRows, time filled up]
  std::vector<float> query, mixed;  // [kRows, size]
  std::vector<std::pair<int64_t, int64_t>> seen;  // columns that some row sees
};

// Values of V * kLanes numbers of a head, weighed and summed over the columns seen.
template <int R, int V>
__attribute__((noinline)) void values_of(const Scratch& scratch, const float* value, int64_t size, int64_t stride,
                                         float* out) {
  Vector sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] = Vector{};
  const float* weights = scratch.scores.data();
  for (const auto& [begin, end] : scratch.seen) {
#pragma GCC unroll 2
    for (int64_t t = begin; t < end; t++) {
      Vector values[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) values[v] = *(const Vector*)(value + t * size + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const float weight = weights[r * stride + t];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sums[r][v] += weight * values[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) *(Vector*)(out + r * size + v * kLanes) = sums[r][v];
}

bool any(const bool* begin, const bool* end) { return std::memchr(begin, 1, end - begin) != nullptr; }

// Rows `row` .. `row` + R of a context and head.
template <int R>
void tile(const Work& work, int64_t context, int64_t head, int64_t row, Scratch& scratch) {
  constexpr int V = R <= 2 ? 2 * kVectors : kVectors;  // sums enough to hide what one takes
  const int64_t size = work.size, time = work.time;
  const int64_t stride = (time + kWidth - 1) / kWidth * kWidth;
  const float* key = work.key + (context * work.heads + head) * size * stride;
  const float* value = work.value + (context * work.heads + head) * time * size;
  scratch.scores.resize(std::max<size_t>(scratch.scores.size(), R * stride));
  scratch.query.resize(std::max<size_t>(scratch.query.size(), R * size));
  scratch.mixed.resize(std::max<size_t>(scratch.mixed.size(), R * size));
  scratch.seen.clear();
  float* scores = scratch.scores.data();
  int64_t place[R];  // of the row among all [S, K, R]
  const bool* visible[R];
  for (int r = 0; r < R; r++) {
    const int64_t sample = context * work.share() + (row + r) / work.each, query = (row + r) % work.each;
    place[r] = (sample * work.heads + head) * work.each + query;
    visible[r] = work.visible + (sample / (work.samples / work.masks) * work.queries + query % work.queries) * time;
    std::memcpy(scratch.query.data() + r * size, work.query + place[r] * size, size * sizeof(float));
  }
  for (int64_t from = 0; from < time; from += kWidth) {
    const int64_t width = std::min<int64_t>(kWidth, time - from);
    bool some = false;
    for (int r = 0; r < R && !some; r++)
      some = (r == 0 || visible[r] != visible[r - 1]) && any(visible[r] + from, visible[r] + from + width);
    if (!some) continue;
    if (!scratch.seen.empty() && scratch.seen.back().second == from)
      scratch.seen.back().second = from + width;
    else
      scratch.seen.push_back({from, from + width});
    panel_product<R>(scratch.query.data(), key + from * size, size, scores + from, stride);
    for (int r = 0; r < R; r++) {
      if (std::memchr(visible[r] + from, 0, width) != nullptr)
        for (int64_t t = from; t < from + width; t++)
          if (!visible[r][t]) scores[r * stride + t] = kMasked;
      for (int64_t t = from + width; t < from + kWidth; t++) scores[r * stride + t] = kMasked;  // what fills it up
    }
  }
  for (int r = 0; r < R; r++) {
    float* mine = scores + r * stride;
    Vector peaks = Vector{} + kMasked;
    for (const auto& [begin, end] : scratch.seen)
      for (int64_t t = begin; t < end; t += kLanes) {
        const Vector here = *(const Vector*)(mine + t);
        peaks = here > peaks ? here : peaks;
      }
    const float peak = largest(peaks);
    Vector totals = Vector{};
    for (const auto& [begin, end] : scratch.seen)
      for (int64_t t = begin; t < end; t += kLanes) {
        const Vector here = *(const Vector*)(mine + t);
        const Vector weight = here <= kMasked ? Vector{} : exponential(here - peak);
        *(Vector*)(mine + t) = weight;
        totals += weight;
      }
    work.peak[place[r]] = peak;
    work.total[place[r]] = sum(totals);
  }
  int64_t from = 0;
  for (; from + V * kLanes <= size; from += V * kLanes)
    values_of<R, V>(scratch, value + from, size, stride, scratch.mixed.data() + from);
  for (; from + kLanes <= size; from += kLanes)
    values_of<R, 1>(scratch, value + from, size, stride, scratch.mixed.data() + from);
  for (; from < size; from++)
    for (int r = 0; r < R; r++) {
      float sum = 0;
      for (const auto& [begin, end] : scratch.seen)
        for (int64_t t = begin; t < end; t++) sum += scores[r * stride + t] * value[t * size + from];
      scratch.mixed[r * size + from] = sum;
    }
  for (int r = 0; r < R; r++)
    std::memcpy(work.mixed + place[r] * size, scratch.mixed.data() + r * size, size * sizeof(float));
}

using Keys = ffi::Buffer<ffi::F32, 5>;

ffi::Error attend(ffi::ThreadPool pool, ffi::BufferR4<ffi::F32> query, Keys key,
                  ffi::BufferR4<ffi::F32> value, ffi::BufferR3<ffi::PRED> visible, ffi::ResultBufferR4<ffi::F32> mixed,
                  ffi::ResultBufferR3<ffi::F32> peak, ffi::ResultBufferR3<ffi::F32> total) {
  Work work;
  work.query = query.typed_data(), work.key = key.typed_data(), work.value = value.typed_data();
  work.visible = visible.typed_data(), work.mixed = mixed->typed_data(), work.peak = peak->typed_data();
  work.total = total->typed_data();
  const auto rows = query.dimensions(), keys = key.dimensions(), values = value.dimensions();
  const auto masks = visible.dimensions();
  work.samples = rows[0], work.heads = rows[1], work.each = rows[2], work.size = rows[3];
  work.batch = values[0], work.time = values[2], work.masks = masks[0], work.queries = masks[1];
  const int64_t panels = (work.time + kWidth - 1) / kWidth;
  if (keys[0] != work.batch || keys[1] != work.heads || keys[2] != panels || keys[3] != work.size ||
      keys[4] != kWidth || values[1] != work.heads || values[3] != work.size || masks[2] != work.time || !work.batch || !work.masks ||
      !work.queries || work.samples % work.batch || work.samples % work.masks || work.each % work.queries)
    return ffi::Error::InvalidArgument("attention: shapes that do not belong together");
  const int64_t tiles = work.tiles(), operations = 4 * kRows * work.time * work.size;
  in_pieces(pool, work.batch * work.heads * tiles, operations, [work, tiles](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    for (int64_t number = begin; number < end; number++) {
      const int64_t row = number % tiles * kRows, head = number / tiles % work.heads;
      with_rows<kRows>(work.rows() - row, [&](auto rows) {
        tile<decltype(rows)::value>(work, number / tiles / work.heads, head, row, scratch);
      });
    }
  });
  return ffi::Error::Success();
}

}  // namespace attention

XLA_FFI_DEFINE_HANDLER_SYMBOL(attend_segment, attention::attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR4<ffi::F32>>()
                                  .Arg<attention::Keys>()
                                  .Arg<ffi::BufferR4<ffi::F32>>()
                                  .Arg<ffi::BufferR3<ffi::PRED>>()
                                  .Ret<ffi::BufferR4<ffi::F32>>()
                                  .Ret<ffi::BufferR3<ffi::F32>>()
                                  .Ret<ffi::BufferR3<ffi::F32>>());
