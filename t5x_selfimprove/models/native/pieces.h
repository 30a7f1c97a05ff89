// What the kernels share: vectors as wide as this CPU has them, the product with a panel, and work on XLA's threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef int32_t Whole __attribute__((vector_size(4 * kLanes), aligned(4)));

constexpr int kVectors = 2;
constexpr int kWidth = kLanes * kVectors;  // columns of a panel, of weights and of keys

constexpr int64_t kOperations = 1 << 20;  // of a piece of work at least: waking a thread takes as long as so many
constexpr int64_t kPieces = 8;  // for each thread: one that is late leaves its pieces to the others

// exp(x) for x <= 0, within two units in the last place: 2^n exp(r) with r in +- ln 2 / 2 and exp(r) by the polynomial of
// Cephes (Moshier 1989, expf.c).
inline Vector exponential(Vector x) {
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  const Vector shifted = x * 1.44269504088896341f + kRounder;
  const Vector n = shifted - kRounder;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Whole power = ((Whole)shifted - (Whole)(Vector{} + kRounder) + 127) << 23;
  const Vector result = p * (Vector)power;
  return x < -87.0f ? Vector{} : result;  // not where x is no number
}

inline float largest(Vector x) {
  float found = x[0];
  for (int lane = 1; lane < kLanes; lane++) found = std::max(found, x[lane]);
  return found;
}

inline float sum(Vector x) {
  float found = x[0];
  for (int lane = 1; lane < kLanes; lane++) found += x[lane];
  return found;
}

// Rows, [R, inputs], times a panel, [inputs, kWidth]. Each sum goes over the inputs in their order. Not inlined: in a larger
// function the sums would leave their registers.
template <int R>
__attribute__((noinline)) void panel_product(const float* x, const float* panel, int64_t inputs, float* out,
                                             int64_t stride) {
  Vector sums[R][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) sums[r][v] = Vector{};
#pragma GCC unroll 4
  for (int64_t k = 0; k < inputs; k++) {
    Vector columns[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) columns[v] = *(const Vector*)(panel + k * kWidth + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const float input = x[r * inputs + k];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; v++) sums[r][v] += input * columns[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) *(Vector*)(out + r * stride + v * kLanes) = sums[r][v];
}

// Calls function(std::integral_constant<int, rows>), of R rows at most.
template <int R, typename Function>
void with_rows(int64_t rows, Function function) {
  if constexpr (R > 0) {
    if (rows >= R) return function(std::integral_constant<int, R>());
    with_rows<R - 1>(rows, function);
  }
}

// work(begin, end) over parts of 0 .. count, each of `operations`, on all threads; back when all is done.
template <typename Function>
void in_pieces(ffi::ThreadPool pool, int64_t count, int64_t operations, Function work) {
  struct State {
    Function work;
    int64_t count, each, pieces;
    std::atomic<int64_t> taken{0}, done{0};

    State(Function work, int64_t count, int64_t each)
        : work(work), count(count), each(each), pieces((count + each - 1) / each) {}

    void take_part() {
      for (int64_t piece; (piece = taken.fetch_add(1)) < pieces;) {
        work(piece * each, std::min(count, (piece + 1) * each));
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  if (count == 0) return;
  const int64_t threads = std::max<int64_t>(1, pool.num_threads()), one = std::max<int64_t>(1, operations);
  const int64_t each = std::max(count / (kPieces * threads), (kOperations + one - 1) / one);
  // Shared: a thread may come when all is done, to see that there is nothing left to take.
  auto state = std::make_shared<State>(work, count, std::clamp<int64_t>(each, 1, count));
  for (int64_t other = 1; other < std::min(threads, state->pieces); other++)
    pool.Schedule([state] { state->take_part(); });
  state->take_part();
  while (state->done.load(std::memory_order_acquire) < state->pieces) std::this_thread::yield();
}
