// A warp's offset planes on a GPU: a whole plane stays in registers from the first layer to the last. Shared by
// gpu.cu, gpu_myrtle.cu and gpu_myrtle_exact.cu; gpu_launch.py, gpu_myrtle.py and layout.py define the macros below.
//
// A lane holds a tile of LANE_ROWS x LANE_COLUMNS entries of a plane, a plane takes LANES_DOWN x LANES_ACROSS lanes, and
// a warp holds PLANES of them: offsets of one pair (where every pixel pair counts) or pairs (vanilla). Neighbouring tiles meet
// by shuffle. Planes are cyclic: pixel p of the first image meets pixel (p + d) mod (ROWS, COLUMNS) of the second, and
// the box is cut at the image's edge and where p + d wraps. A cut is a factor of 0, never seen by anything but finite
// numbers: images are scaled so that no product overflows, and every entry of a table is finite.
#pragma once
#ifdef __CUDA_ARCH__
// Never of a denormal, so flushing them loses nothing: relu_layer's arguments are 0 or at least 1e-10.
__device__ __forceinline__ float root(float x) {
    float y;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ double root(double x) { return sqrt(x); }

// Copies to shared memory that the thread does not wait for, where the machine has them.
template <class V> __device__ __forceinline__ void copy_later(V* to, const V* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from),
                 "n"(sizeof(V))
                 : "memory");
#else
    *to = *from;
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
#endif
#include "arithmetic.h"

typedef long long whole;  // sizes and places in memory

// Tiles of a plane. Padding entries beyond the image's edge have normalisers of 0 and so stay 0.
constexpr int LANES_DOWN = (ROWS + LANE_ROWS - 1) / LANE_ROWS, LANES_ACROSS = (COLUMNS + LANE_COLUMNS - 1) / LANE_COLUMNS;
constexpr int LANES = LANES_DOWN * LANES_ACROSS, PLANES = 32 / LANES;
constexpr int PADDED_ROWS = LANES_DOWN * LANE_ROWS, PADDED_COLUMNS = LANES_ACROSS * LANE_COLUMNS;
constexpr int TABLE = PADDED_ROWS * PADDED_COLUMNS;
// An image is a run of stages of two tables each: its channels in pairs, then for each layer deviations and reciprocals.
constexpr int STAGE = 2 * TABLE;
constexpr int PIXELS = ROWS * COLUMNS;
constexpr int THREADS = 32 * WARPS;
// The second image's rows as a block keeps them: wrapped, so that every lane's rows follow one another.
constexpr int WRAPPED_ROWS = ROWS + LANE_ROWS - 1, WRAPPED = WRAPPED_ROWS * PADDED_COLUMNS;
constexpr int CHUNKS = (COLUMNS + GROUP - 1) / GROUP;
constexpr int BUFFER = (STAGE + GROUP * 2 * WRAPPED + 3) / 4 * 4;  // floats of a stage in shared memory
constexpr int BUFFERS = 2 * BUFFER * 4 <= 46 * 1024 ? 2 : 1;
constexpr int BLOCKS_AN_SM = LANE_ROWS * LANE_COLUMNS <= 32 ? 16 / WARPS : 1;
constexpr float NEAR_ONE = 1e-3f;  // as on a CPU: see planes.h
constexpr unsigned ALL = 0xffffffffu;

// Hides where a value comes from, so that the compiler neither computes it again (a border's factor, in every layer) nor
// keeps what follows from it (addresses) in registers, which are short.
NTK_INLINE float opaque(float x) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+f"(x));
#endif
    return x;
}
NTK_INLINE int opaque(int x) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// Which images a flat pair number means: row by row of (n1, n2), or of the lower triangle where symmetric; where n2 is 0,
// each image with itself.
NTK_INLINE void find_pair(whole pair, whole n2, whole symmetric, whole& i, whole& j) {
    if (!n2) {
        i = j = pair;
        return;
    }
    if (!symmetric) {
        i = pair / n2, j = pair % n2;
        return;
    }
    i = (whole)((sqrt(8.0 * (double)pair + 1.0) - 1.0) / 2.0);
    while (i * (i + 1) / 2 > pair) i--;
    while ((i + 1) * (i + 2) / 2 <= pair) i++;
    j = pair - i * (i + 1) / 2;
}

// A lane's place in its plane, and which of its tile's borders are open: across[c] is the border left of column c,
// down[r] the one above row r.
struct Place {
    int slot, row, column;
    bool used;
    float across[LANE_COLUMNS + 1], down[LANE_ROWS + 1];

    NTK_INLINE Place of_thread(unsigned thread) {
        Place place;
        const int lane = thread % 32, within = lane % LANES;
        place.slot = lane / LANES;
        place.row = within / LANES_ACROSS * LANE_ROWS;
        place.column = within % LANES_ACROSS * LANE_COLUMNS;
        return place;
    }
    __device__ __forceinline__ void cut(bool in_use, int d1, int d2) {
        used = in_use;
#pragma unroll
        for (int c = 0; c <= LANE_COLUMNS; c++) {
            const int j = column + c;
            across[c] = opaque(used && j > 0 && j < COLUMNS && j != COLUMNS - d2 ? 1.f : 0.f);
        }
#pragma unroll
        for (int r = 0; r <= LANE_ROWS; r++) {
            const int i = row + r;
            down[r] = opaque(used && i > 0 && i < ROWS && i != ROWS - d1 ? 1.f : 0.f);
        }
    }
};

typedef float Tile[LANE_ROWS][LANE_COLUMNS];

NTK_INLINE void load_row(const float* from, float (&to)[LANE_COLUMNS]) {
    if constexpr (LANE_COLUMNS % 4 == 0) {
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c += 4) {
            const float4 v = *(const float4*)(from + c);
            to[c] = v.x, to[c + 1] = v.y, to[c + 2] = v.z, to[c + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) to[c] = from[c];
    }
}

// The sum over the 3 x 3 neighbourhood, in place.
NTK_INLINE void box(Tile& v, const Place& place) {
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++) {
        float before = 0, after = 0;
        if constexpr (LANES_ACROSS > 1) {
            before = __shfl_up_sync(ALL, v[r][LANE_COLUMNS - 1], 1);
            after = __shfl_down_sync(ALL, v[r][0], 1);
        }
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) {
            const float here = v[r][c], next = c + 1 < LANE_COLUMNS ? v[r][c + 1 < LANE_COLUMNS ? c + 1 : c] : after;
            v[r][c] = here + place.across[c] * before + place.across[c + 1] * next;
            before = here;
        }
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c++) {
        float before = 0, after = 0;
        if constexpr (LANES_DOWN > 1) {
            before = __shfl_up_sync(ALL, v[LANE_ROWS - 1][c], LANES_ACROSS);
            after = __shfl_down_sync(ALL, v[0][c], LANES_ACROSS);
        }
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) {
            const float here = v[r][c], next = r + 1 < LANE_ROWS ? v[r + 1 < LANE_ROWS ? r + 1 : r][c] : after;
            v[r][c] = here + place.down[r] * before + place.down[r + 1] * next;
            before = here;
        }
    }
}

// One channel stage: two channels' products. a, b: this lane's first entry in the first and the second image's tables,
// the latter's second table `other` floats after its first.
NTK_INLINE void multiply_channels(Tile& s, const float* a, const float* b, int other) {
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++) {
        float a0[LANE_COLUMNS], a1[LANE_COLUMNS], b0[LANE_COLUMNS], b1[LANE_COLUMNS];
        load_row(a + r * PADDED_COLUMNS, a0), load_row(a + TABLE + r * PADDED_COLUMNS, a1);
        load_row(b + r * PADDED_COLUMNS, b0), load_row(b + other + r * PADDED_COLUMNS, b1);
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) s[r][c] += a0[c] * b0[c] + a1[c] * b1[c];
    }
}

// One layer: s and t become K and R, FIRST from s alone. Where COUNT, also counts the correlations of nearly 1.
template <bool FIRST, bool COUNT>
NTK_INLINE void layer(Tile& s, Tile& t, const Place& place, const float* a, const float* b, int other, int& near) {
    box(s, place);
    if constexpr (FIRST) {
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++)
#pragma unroll
            for (int c = 0; c < LANE_COLUMNS; c++) t[r][c] = TRAIN_FIRST ? s[r][c] : 0.f;
    } else if constexpr (WITH_NTK) {
        box(t, place);
    }
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++) {
        float deviation1[LANE_COLUMNS], inverse1[LANE_COLUMNS], deviation2[LANE_COLUMNS], inverse2[LANE_COLUMNS];
        load_row(a + r * PADDED_COLUMNS, deviation1), load_row(a + TABLE + r * PADDED_COLUMNS, inverse1);
        load_row(b + r * PADDED_COLUMNS, deviation2), load_row(b + other + r * PADDED_COLUMNS, inverse2);
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) {
            float k, ntk, lam;
            relu_layer<FIRST, WITH_NTK>(s[r][c], t[r][c], inverse1[c] * inverse2[c], deviation1[c] * deviation2[c], k, ntk, lam);
            s[r][c] = k, t[r][c] = ntk;
            if (COUNT && lam > 1.f - NEAR_ONE) near++;
        }
    }
}

// A lane's sum: columns, then rows, in float; everything beyond a lane is double.
NTK_INLINE double tile_sum(const Tile& v) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++) {
        float row = 0;
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) row += v[r][c];
        sum += row;
    }
    return sum;
}

// The sum over the first `lanes` of every run of `lanes` lanes, in its first lane, always in the same order.
template <int lanes, class V> NTK_INLINE V lane_sum(V v) {
    constexpr int half = lanes > 16 ? 16 : lanes > 8 ? 8 : lanes > 4 ? 4 : lanes > 2 ? 2 : 1;
    const int within = threadIdx.x % 32 % lanes;
#pragma unroll
    for (int step = half; lanes > 1 && step > 0; step /= 2) {
        const V other = __shfl_down_sync(ALL, v, step);
        if (within < step && within + step < lanes) v += other;
    }
    return v;
}

template <class V, int count> NTK_INLINE void copy_all(V* to, const V* from, int thread) {
    constexpr int whole_rounds = count / THREADS;
    to += thread, from += thread;
#pragma unroll
    for (int n = 0; n < whole_rounds; n++) copy_later(to + n * THREADS, from + n * THREADS);
    if (thread < count % THREADS) copy_later(to + whole_rounds * THREADS, from + whole_rounds * THREADS);
}

// A stage of both images to shared memory: the first as it is, the second once for each d2 of the group, rotated by it.
// A padding column of the second may hold anything finite: the first's normalisers there are 0.
NTK_INLINE void fill(float* buffer, const float* first, const float* second, int d2) {
    const int thread = opaque((int)threadIdx.x);
    if constexpr (STAGE % 4 == 0)
        copy_all<float4, STAGE / 4>((float4*)buffer, (const float4*)first, thread);
    else
        copy_all<float, STAGE>(buffer, first, thread);
    // Each thread keeps to one column: what it copies lies at constant distances, but for the rows where it wraps.
    constexpr int at_once = THREADS / PADDED_COLUMNS;
    const int column = thread % PADDED_COLUMNS, row = thread / PADDED_COLUMNS;
    if (THREADS % PADDED_COLUMNS && row >= at_once) return;
#pragma unroll 1
    for (int g = 0; g < GROUP; g++) {
        const float* from = second + row * PADDED_COLUMNS + (column + d2 + g) % COLUMNS;
        float* to = buffer + STAGE + g * 2 * WRAPPED + row * PADDED_COLUMNS + column;
#pragma unroll
        for (int above = 0; above < WRAPPED_ROWS; above += at_once) {
            if (above + at_once > WRAPPED_ROWS && row >= WRAPPED_ROWS - above) break;
            const bool wraps = above >= ROWS || (above + at_once > ROWS && row >= ROWS - above);
            const float* source = from + (wraps ? above - ROWS : above) * PADDED_COLUMNS;
            copy_later(to + above * PADDED_COLUMNS, source);
            copy_later(to + above * PADDED_COLUMNS + WRAPPED, source + TABLE);
        }
    }
}
