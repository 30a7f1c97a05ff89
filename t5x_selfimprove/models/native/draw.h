// A token drawn from the distribution of each row of logits, and the logarithm of the sum of a row's exponentials, in
// float32; sampling/transforms.py says what is computed. What comes of a row does not depend on the rows beside it.

#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "pieces.h"

namespace drawing {

constexpr int64_t kBlock = 256;  // entries whose weights are summed together; a multiple of kLanes
constexpr int64_t kOperationsEach = 32;  // of an entry of a row, roughly

// The logits from `from` on, as many as there are lanes; past the end of the row -inf.
inline Vector at(const float* row, int64_t from, int64_t size) {
  if (from + kLanes <= size) return *(const Vector*)(row + from);
  Vector last = Vector{} - std::numeric_limits<float>::infinity();
  for (int64_t n = from; n < size; n++) last[n - from] = row[n];
  return last;
}

float peak_of(const float* row, int64_t size) {
  Vector peaks = Vector{} - std::numeric_limits<float>::infinity();
  for (int64_t from = 0; from < size; from += kLanes) {
    const Vector here = at(row, from, size);
    peaks = here > peaks ? here : peaks;
  }
  return largest(peaks);
}

// The sum of the weights exp(logit - peak) of a block.
float weight_of(const float* row, int64_t begin, int64_t size, float peak) {
  Vector sums = Vector{};
  for (int64_t from = begin; from < std::min(size, begin + kBlock); from += kLanes)
    sums += exponential(at(row, from, size) - peak);
  return sum(sums);
}

// The first entry of the row at which the running sum of the weights is beyond `uniform` times all of it. Rounding may
// carry that past the last entry with weight, which is then the answer.
int32_t draw_of(const float* row, int64_t size, float uniform, float peak, const std::vector<float>& blocks, float total) {
  const float aim = uniform * total;
  float before = 0;
  int64_t chosen = -1;
  for (size_t block = 0; block < blocks.size(); block++) {
    if (!(blocks[block] > 0)) continue;
    if (chosen >= 0) before += blocks[chosen];
    chosen = block;
    if (before + blocks[block] > aim) break;
  }
  if (chosen < 0) return size - 1;  // rows that are no numbers
  int64_t last = size - 1;
  for (int64_t from = chosen * kBlock; from < std::min(size, (chosen + 1) * kBlock); from += kLanes) {
    const Vector weights = exponential(at(row, from, size) - peak);
    for (int lane = 0; lane < kLanes && from + lane < size; lane++) {
      if (!(weights[lane] > 0)) continue;
      before += weights[lane];
      last = from + lane;
      if (before > aim) return last;
    }
  }
  return last;
}

using Rows = ffi::BufferR2<ffi::F32>;
using Numbers = ffi::BufferR1<ffi::F32>;

// Total, and where `uniform` is given a token, of rows `begin` .. `end`.
void work(const float* logits, const float* uniform, int64_t size, int32_t* token, float* total, int64_t begin,
          int64_t end) {
  std::vector<float> blocks((size + kBlock - 1) / kBlock);
  for (int64_t number = begin; number < end; number++) {
    const float* row = logits + number * size;
    const float peak = peak_of(row, size);
    float all = 0;
    for (size_t block = 0; block < blocks.size(); block++)
      all += blocks[block] = weight_of(row, block * kBlock, size, peak);
    total[number] = peak + std::log(all);
    if (uniform) token[number] = draw_of(row, size, uniform[number], peak, blocks, all);
  }
}

ffi::Error draw(ffi::ThreadPool pool, Rows logits, Numbers uniform, ffi::ResultBufferR1<ffi::S32> token,
                ffi::Result<Numbers> total) {
  const int64_t rows = logits.dimensions()[0], size = logits.dimensions()[1];
  if (uniform.dimensions()[0] != rows || token->dimensions()[0] != rows || total->dimensions()[0] != rows || !size)
    return ffi::Error::InvalidArgument("draw: shapes that do not belong together");
  const float *x = logits.typed_data(), *u = uniform.typed_data();
  int32_t* t = token->typed_data();
  float* all = total->typed_data();
  in_pieces(pool, rows, kOperationsEach * size,
            [=](int64_t begin, int64_t end) { work(x, u, size, t, all, begin, end); });
  return ffi::Error::Success();
}

ffi::Error add(ffi::ThreadPool pool, Rows logits, ffi::Result<Numbers> total) {
  const int64_t rows = logits.dimensions()[0], size = logits.dimensions()[1];
  if (total->dimensions()[0] != rows || !size)
    return ffi::Error::InvalidArgument("log_sum_exp: shapes that do not belong together");
  const float* x = logits.typed_data();
  float* all = total->typed_data();
  in_pieces(pool, rows, kOperationsEach * size,
            [=](int64_t begin, int64_t end) { work(x, nullptr, size, nullptr, all, begin, end); });
  return ffi::Error::Success();
}

}  // namespace drawing

XLA_FFI_DEFINE_HANDLER_SYMBOL(draw_tokens, drawing::draw,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<drawing::Rows>()
                                  .Arg<drawing::Numbers>()
                                  .Ret<ffi::BufferR1<ffi::S32>>()
                                  .Ret<drawing::Numbers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(log_sum_exp, drawing::add, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<drawing::Rows>().Ret<drawing::Numbers>());
