// Bernoulli draws from the state of PyTorch's generator on CPUs, the Mersenne Twister MT19937
// (Matsumoto and Nishimura, 1998): the same numbers as Tensor.bernoulli_, which draws one at a time.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ddetr {
namespace {

constexpr int kTwisterShift = 397;

inline uint32_t twisted(uint32_t a, uint32_t b) {
  const uint32_t mixed = (a & 0x80000000u) | (b & 0x7fffffffu);
  return (mixed >> 1) ^ (-(b & 1u) & 0x9908b0dfu);
}

// The next words of the recurrence. What a loop reads lies ahead of what it writes, or 227 words
// behind, so that both run in vectors.
inline void renew(uint32_t* word) {
  constexpr int n = kTwisterWords, m = kTwisterShift;
  for (int i = 0; i < n - m; ++i) word[i] = word[i + m] ^ twisted(word[i], word[i + 1]);
  for (int i = n - m; i < n - 1; ++i) word[i] = word[i + m - n] ^ twisted(word[i], word[i + 1]);
  word[n - 1] = word[m - 1] ^ twisted(word[n - 1], word[0]);
}

inline uint32_t tempered(uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

// Leaves out draws that another thread makes.
void run_skip_draws(Twister& twister, int64_t count) {
  for (int64_t words = 2 * count; words > 0;) {
    if (twister.next == kTwisterWords) renew(twister.word), twister.next = 0;
    const int64_t left = kTwisterWords - twister.next, taken = left < words ? left : words;
    twister.next += static_cast<int>(taken), words -= taken;
  }
}

// A draw takes two words, the first as the upper half, and of them the lower 53 bits.
inline void compare(const uint32_t* words, int draws, uint64_t threshold, bool* below) {
  int i = 0;
#if DDETR_VECTOR_BYTES == 32  // a third of the time of what the general form compiles to
  const __m256i lower = _mm256_set1_epi64x((int64_t{1} << 53) - 1);
  const __m256i limit = _mm256_set1_epi64x(threshold), one = _mm256_set1_epi8(1);
  for (; i + 32 <= draws; i += 32) {
    __m256 pairs[4];  // of two fours of draws their first two, and their last two
    for (int pair = 0; pair < 4; ++pair) {
      __m256 four[2];
      for (int k = 0; k < 2; ++k) {
        const uint32_t* from = words + 2 * i + 16 * pair + 8 * k;
        const __m256i swapped = _mm256_shuffle_epi32(_mm256_loadu_si256((const __m256i*)from), 0xb1);
        four[k] = (__m256)_mm256_cmpgt_epi64(limit, _mm256_and_si256(swapped, lower));
      }
      pairs[pair] = _mm256_shuffle_ps(four[0], four[1], 0x88);
    }
    const __m256i bytes = _mm256_packs_epi16(
        _mm256_packs_epi32((__m256i)pairs[0], (__m256i)pairs[1]),
        _mm256_packs_epi32((__m256i)pairs[2], (__m256i)pairs[3]));
    const __m128i first = _mm256_castsi256_si128(bytes), last = _mm256_extracti128_si256(bytes, 1);
    const __m256i in_order =
        _mm256_set_m128i(_mm_unpackhi_epi16(first, last), _mm_unpacklo_epi16(first, last));
    _mm256_storeu_si256((__m256i*)(below + i), _mm256_and_si256(in_order, one));
  }
#endif
  for (; i < draws; ++i) {
    const uint64_t upper = words[2 * i] & 0x1fffffu;
    below[i] = (upper << 32 | words[2 * i + 1]) < threshold;
  }
}

void run_bernoulli(Twister& twister, bool* result, int64_t count, uint64_t threshold) {
  constexpr int kDraws = 1024;
  uint32_t words[2 * kDraws];
  for (int64_t done = 0; done < count; done += kDraws) {
    const int draws = count - done < kDraws ? static_cast<int>(count - done) : kDraws;
    for (int filled = 0; filled < 2 * draws;) {
      if (twister.next == kTwisterWords) renew(twister.word), twister.next = 0;
      const int left = kTwisterWords - twister.next, wanted = 2 * draws - filled;
      const int taken = left < wanted ? left : wanted;
      const uint32_t* const from = twister.word + twister.next;
      uint32_t* const to = words + filled;
      for (int i = 0; i < taken; ++i) to[i] = tempered(from[i]);
      twister.next += taken, filled += taken;
    }
    compare(words, draws, threshold, result + done);
  }
}

}  // namespace
}  // namespace ddetr
