// What a warp does together, once all its lanes have arrived.

#include "../common.cuh"

namespace emulator {

namespace {

void nothing(Slot*) {}

void exchange_values(Slot* slots) {
    u64 values[WARP];
    for (u32 lane = 0; lane < WARP; lane++) {
        values[lane] = slots[lane].value;
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        slots[lane].value = values[slots[lane].from_lane];
    }
}

void gather_votes(Slot* slots) {
    u64 votes = 0;
    for (u32 lane = 0; lane < WARP; lane++) {
        votes |= slots[lane].value << lane;
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        slots[lane].value = votes;
    }
}

u16 half_at(const void* row, u32 column) {
    u16 half;
    std::memcpy(&half, static_cast<const u8*>(row) + 2 * column, sizeof half);
    return half;
}

template <u32 MATRICES, bool TRANSPOSED> void load(Slot* slots) {
    u32 words[WARP][MATRICES];
    for (u32 lane = 0; lane < WARP; lane++) {
        const u32 g = lane / 4, c = lane % 4 * 2;
        for (u32 matrix = 0; matrix < MATRICES; matrix++) {
            const Slot* rows = &slots[8 * matrix];
            const u16 lo = TRANSPOSED ? half_at(rows[c].from[0], g) : half_at(rows[g].from[0], c);
            const u16 hi =
                TRANSPOSED ? half_at(rows[c + 1].from[0], g) : half_at(rows[g].from[0], c + 1);
            words[lane][matrix] = lo | u32(hi) << 16;
        }
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        std::memcpy(slots[lane].to, words[lane], sizeof words[lane]);
    }
}

// A row of B or D, added and multiplied element by element.
typedef float Row __attribute__((vector_size(32)));

// Where the halves of a word lie in the matrix: common.cuh. The products are added in order of k.
template <class T> void multiply(Slot* slots) {
    float a[16][16];
    Row b[16], d[16];
    for (u32 lane = 0; lane < WARP; lane++) {
        const u32 g = lane / 4, c = lane % 4 * 2;
        const u32* a_words = static_cast<const u32*>(slots[lane].from[0]);
        const u32* b_words = static_cast<const u32*>(slots[lane].from[1]);
        const float* d_numbers = static_cast<const float*>(slots[lane].to);
        for (u32 word = 0; word < 4; word++) {
            const Pair pair = unpack2<T>(a_words[word]);
            float* to = &a[g + word % 2 * 8][c + word / 2 * 8];
            to[0] = pair.lo;
            to[1] = pair.hi;
        }
        for (u32 word = 0; word < 2; word++) {
            const Pair pair = unpack2<T>(b_words[word]);
            b[c + word * 8][g] = pair.lo;
            b[c + word * 8 + 1][g] = pair.hi;
        }
        for (u32 i = 0; i < 4; i++) {
            d[g + i / 2 * 8][c + i % 2] = d_numbers[i];
        }
    }
    for (u32 row = 0; row < 16; row++) {
        for (u32 k = 0; k < 16; k++) {
            d[row] += a[row][k] * b[k];
        }
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        const u32 g = lane / 4, c = lane % 4 * 2;
        float* d_numbers = static_cast<float*>(slots[lane].to);
        for (u32 i = 0; i < 4; i++) {
            d_numbers[i] = d[g + i / 2 * 8][c + i % 2];
        }
    }
}

} // namespace

const Operation SYNC_WARP = {"sync_warp", nothing};
const Operation SHUFFLE = {"shuffle", exchange_values};
const Operation SHUFFLE_XOR = {"shuffle_xor", exchange_values};
const Operation SHUFFLE_UP = {"shuffle_up", exchange_values};
const Operation SHUFFLE_DOWN = {"shuffle_down", exchange_values};
const Operation BALLOT = {"ballot", gather_votes};
const Operation LDMATRIX_X4 = {"ldmatrix_x4", load<4, false>};
const Operation LDMATRIX_X4_TRANS = {"ldmatrix_x4_trans", load<4, true>};
const Operation LDMATRIX_X2 = {"ldmatrix_x2", load<2, false>};
const Operation LDMATRIX_X2_TRANS = {"ldmatrix_x2_trans", load<2, true>};
const Operation MMA_BF16 = {"mma_m16n8k16", multiply<bf16>};
const Operation MMA_F16 = {"mma_m16n8k16", multiply<f16>};

} // namespace emulator
