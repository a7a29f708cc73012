// BLAKE2b (RFC 7693) without a key, with a digest of 16 bytes.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace tallow {

class Blake2b128 {
public:
    // The digest as two words, the first one the more significant.
    static std::array<uint64_t, 2> digest(std::string_view message) {
        Blake2b128 state;
        uint64_t taken = 0;
        while (message.size() > BLOCK) {
            state.compress(message.data(), taken += BLOCK, false);
            message.remove_prefix(BLOCK);
        }
        char last[BLOCK] = {};
        std::memcpy(last, message.data(), message.size());
        state.compress(last, taken + message.size(), true);
        return {swapped(state.state_[0]), swapped(state.state_[1])};
    }

private:
    static constexpr size_t BLOCK = 128, DIGEST = 16;
    static constexpr std::array<uint64_t, 8> START = {0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
                                                      0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179};
    static constexpr uint8_t ORDER[10][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
        {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
        {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
        {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
        {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

    Blake2b128() : state_(START) { state_[0] ^= 0x01010000 ^ DIGEST; }

    static uint64_t swapped(uint64_t word) {
        uint64_t other = 0;
        for (int byte = 0; byte < 8; ++byte) other = other << 8 | (word >> 8 * byte & 0xFF);
        return other;
    }

    static void mix(std::array<uint64_t, 16> &v, int a, int b, int c, int d, uint64_t x, uint64_t y) {
        v[a] += v[b] + x;
        v[d] = std::rotr(v[d] ^ v[a], 32);
        v[c] += v[d];
        v[b] = std::rotr(v[b] ^ v[c], 24);
        v[a] += v[b] + y;
        v[d] = std::rotr(v[d] ^ v[a], 16);
        v[c] += v[d];
        v[b] = std::rotr(v[b] ^ v[c], 63);
    }

    void compress(const char *block, uint64_t taken, bool last) {
        std::array<uint64_t, 16> words, v;
        for (int i = 0; i < 16; ++i) {
            std::memcpy(&words[i], block + 8 * i, 8);
            if constexpr (std::endian::native == std::endian::big) words[i] = swapped(words[i]);
        }
        std::copy(state_.begin(), state_.end(), v.begin());
        std::copy(START.begin(), START.end(), v.begin() + 8);
        v[12] ^= taken;
        if (last) v[14] = ~v[14];
        for (int round = 0; round < 12; ++round) {
            const uint8_t *const order = ORDER[round % 10];
            for (int i = 0; i < 4; ++i) mix(v, i, 4 + i, 8 + i, 12 + i, words[order[2 * i]], words[order[2 * i + 1]]);
            for (int i = 0; i < 4; ++i)
                mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, words[order[8 + 2 * i]], words[order[9 + 2 * i]]);
        }
        for (int i = 0; i < 8; ++i) state_[i] ^= v[i] ^ v[8 + i];
    }

    std::array<uint64_t, 8> state_;
};

}  // namespace tallow
