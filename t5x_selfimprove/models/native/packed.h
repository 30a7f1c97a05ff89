// The product of rows with a packed matrix in float32; packed.py says how it is laid out.
//
// Every number is the sum over its inputs in their order, with one rounding an input, whatever the rows beside it: what
// comes of a row is the same to the bit in a batch of any size, on any number of threads.

#pragma once

#include <cstring>

#include "pieces.h"

namespace packed {

// Sums of kRows x kVectors stay in registers while the inputs go by.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#elif defined(__AVX__)
constexpr int kRows = 6;
#elif defined(__aarch64__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int64_t kBlock = 16 * kRows;  // rows that meet one panel after the other while they are in the cache

struct Work {
  const float* x;  // [rows, inputs]
  const float* panels;  // [panels, inputs, kWidth]
  float* out;  // [rows, outputs]
  int64_t rows, inputs, outputs;
};

template <int R>
void tile(const Work& work, int64_t row, int64_t number) {
  const float* x = work.x + row * work.inputs;
  const float* panel = work.panels + number * work.inputs * kWidth;
  float* out = work.out + row * work.outputs + number * kWidth;
  const int64_t width = std::min<int64_t>(kWidth, work.outputs - number * kWidth);
  if (width == kWidth) return panel_product<R>(x, panel, work.inputs, out, work.outputs);
  float edge[R * kWidth];
  panel_product<R>(x, panel, work.inputs, edge, kWidth);
  for (int r = 0; r < R; r++) std::memcpy(out + r * work.outputs, edge + r * kWidth, width * sizeof(float));
}

ffi::Error multiply(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> x, ffi::BufferR3<ffi::F32> panels,
                    ffi::ResultBufferR2<ffi::F32> out) {
  Work work;
  work.x = x.typed_data(), work.panels = panels.typed_data(), work.out = out->typed_data();
  work.rows = x.dimensions()[0], work.inputs = x.dimensions()[1], work.outputs = out->dimensions()[1];
  const int64_t count = panels.dimensions()[0];
  if (panels.dimensions()[1] != work.inputs || panels.dimensions()[2] != kWidth ||
      count != (work.outputs + kWidth - 1) / kWidth || out->dimensions()[0] != work.rows)
    return ffi::Error::InvalidArgument("packed product: shapes that do not belong together");
  if (work.rows == 0) return ffi::Error::Success();
  in_pieces(pool, count, 2 * work.rows * work.inputs * kWidth, [work](int64_t begin, int64_t end) {
    for (int64_t start = 0; start < work.rows; start += kBlock) {
      const int64_t stop = std::min(work.rows, start + kBlock);
      for (int64_t number = begin; number < end; number++)
        for (int64_t row = start; row < stop; row += kRows)
          with_rows<kRows>(stop - row, [&](auto rows) { tile<decltype(rows)::value>(work, row, number); });
    }
  });
  return ffi::Error::Success();
}

}  // namespace packed

XLA_FFI_DEFINE_HANDLER_SYMBOL(packed_product, packed::multiply,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::F32>>()
                                  .Arg<ffi::BufferR3<ffi::F32>>()
                                  .Ret<ffi::BufferR2<ffi::F32>>());

extern "C" int packed_width() { return kWidth; }
