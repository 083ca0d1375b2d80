// Vectors of sixteen floats, loaded from and stored as float or bfloat16, for the compiled parts (kernels.cpp here, and those of
// rl/forward). The vectors are GCC's, which the compiler maps to what a processor has; on x86 a copy of each function is compiled for
// AVX-512, for AVX2 and for neither, and chosen when the file is loaded.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef float Quarter __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(128)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct BFloat16 {
  uint16_t bits;
};

INLINE Floats load(const float *from) {
  Floats x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

INLINE Floats load(const BFloat16 *from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

INLINE float value(const float *from) { return *from; }
INLINE float value(const BFloat16 *from) {
  uint32_t bits = (uint32_t)from->bits << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE void store(float *to, Floats x) { std::memcpy(to, &x, sizeof x); }

INLINE void store(BFloat16 *to, Floats x) { // rounded to the nearest, ties to even; what is no number stays none
  Words bits = (Words)x;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Halves halves = __builtin_convertvector(x == x ? rounded : (Words{} + 0x7fc0), Halves);
  std::memcpy(to, &halves, sizeof halves);
}

INLINE Floats all(float x) { return Floats{} + x; }

INLINE Quarter quarter_sums(Floats x) {
  auto half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

INLINE float sum(Floats x) {
  Quarter q = quarter_sums(x);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

INLINE Quarter sums(const Floats *x) { // of four vectors
  Quarter a = quarter_sums(x[0]), b = quarter_sums(x[1]), c = quarter_sums(x[2]), d = quarter_sums(x[3]);
  Quarter ab = __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
  Quarter cd = __builtin_shufflevector(c, d, 0, 4, 2, 6) + __builtin_shufflevector(c, d, 1, 5, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// e^x for x <= 88, to about one unit in the last place; 0 below -87, and no number for none. e^x = 2^n e^r with |r| <= ln(2) / 2, e^r by its series.
INLINE Floats exponential(Floats x) {
  constexpr float SHIFT = 12582912.0f; // 1.5 * 2^23: adding it rounds to a whole number
  Floats clamped = larger(x, all(-87.0f));
  Floats n = (clamped * 1.44269504f + SHIFT) - SHIFT;
  Floats r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return x >= all(-87.0f) ? p * (Floats)power : (x == x ? Floats{} : x);
}

// The exponentials of scores less their largest, in place; returns their sum. Behind `count` there is room up to whole vectors.
INLINE float exponentials(float *scores, int64_t count) {
  for (int64_t i = count; i % LANES; ++i)
    scores[i] = -1e30f;
  Floats largest = all(-1e30f);
  for (int64_t i = 0; i < count; i += LANES)
    largest = larger(load(scores + i), largest);
  float most = largest[0];
  for (int i = 1; i < LANES; ++i)
    most = std::max(most, largest[i]);
  Floats total = {};
  for (int64_t i = 0; i < count; i += LANES) {
    Floats exp = exponential(load(scores + i) - most);
    store(scores + i, exp);
    total += exp;
  }
  return sum(total);
}

} // namespace
