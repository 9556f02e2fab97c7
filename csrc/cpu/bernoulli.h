// Bernoulli draws from the state of PyTorch's generator on CPUs, the Mersenne Twister MT19937
// (Matsumoto and Nishimura, 1998): the same numbers as Tensor.bernoulli_, which draws one at a time.
#pragma once

#include <cstdint>

#include "problem.h"

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
    bool* const to = result + done;
    for (int i = 0; i < draws; ++i) {
      const uint64_t upper = words[2 * i] & 0x1fffffu;
      to[i] = (upper << 32 | words[2 * i + 1]) < threshold;
    }
  }
}

}  // namespace
}  // namespace ddetr
