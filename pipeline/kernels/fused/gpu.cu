// The CNTK on a GPU: a whole offset plane stays in a warp's registers from the first layer to the last. See gpu.py for
// the interface and for what defines the macros below.
//
// A lane holds a tile of LANE_ROWS x LANE_COLUMNS entries of a plane, a plane takes LANES_DOWN x LANES_ACROSS lanes, and
// a warp holds PLANES of them: offsets of one pair (global average pooling) or pairs (vanilla). Neighbouring tiles meet
// by shuffle. Planes are cyclic: pixel p of the first image meets pixel (p + d) mod (ROWS, COLUMNS) of the second, and
// the box is cut at the image's edge and where p + d wraps. A cut is a factor of 0, never seen by anything but finite
// numbers: images are scaled so that no product overflows, and every entry of a table is finite.
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
constexpr int ROUNDS = (GROUP * ROWS + WARPS * PLANES - 1) / (WARPS * PLANES);
constexpr int BUFFER = (STAGE + GROUP * 2 * WRAPPED + 3) / 4 * 4;  // floats of a stage in shared memory
constexpr int BUFFERS = 2 * BUFFER * 4 <= 46 * 1024 ? 2 : 1;
constexpr int BLOCKS_AN_SM = LANE_ROWS * LANE_COLUMNS <= 32 ? 16 / WARPS : 1;
// As in the CPU kernels: see cpu.cpp.
constexpr float NEAR_ONE = 1e-3f;
constexpr int NEAR_ONE_SHARE = 64;
constexpr int ZERO_OFFSET_THREADS = PIXELS < 256 ? (PIXELS + 31) / 32 * 32 : 256;
// Vanilla: a block's first images, and its second ones.
constexpr int DOWN = WARPS % 2 ? 1 : 2, WARPS_ACROSS = WARPS / DOWN, ACROSS = WARPS_ACROSS * PLANES;
// Of the rate at which multiply-adds start: a round has so many a chain that its loop costs nothing beside them.
constexpr int CHAINS = 8, CHAIN_STEPS = 32;
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

    NTK_INLINE Place of_lane() {
        Place place;
        const int lane = threadIdx.x % 32, within = lane % LANES;
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

extern "C" {

// Global average pooling. A block takes one pair and GROUP offsets d2, with every d1: pair first_pair + blockIdx.x / CHUNKS.
// images1, images2: (n, channel_stages + layers, 2, PADDED_ROWS, PADDED_COLUMNS).  read: a bit a layer, 32 a word: whether
// it is read out.  partial (pairs, CHUNKS + 1, 2, reads): sums of R, then of K, from 1 on; 0 is the zero offset.
__global__ void __launch_bounds__(THREADS, BLOCKS_AN_SM)
ntk_pooled(const float* images1, const float* images2, whole n2, whole symmetric, whole first_pair, whole channel_stages,
           whole layers, const unsigned* read, whole reads, double* partial) {
    __shared__ __align__(16) float buffers[BUFFERS][BUFFER];
    __shared__ double sums[2][2][WARPS];
    const int warp = threadIdx.x / 32, chunk = blockIdx.x % CHUNKS, channels = (int)channel_stages;
    const int stages = channels + (int)layers;
    // In shared memory, and read anew each time, for registers are short.
    __shared__ const float *volatile first, *volatile second;
    __shared__ double* out;
    if (threadIdx.x == 0) {
        const whole pair = blockIdx.x / CHUNKS;
        whole i, j;
        find_pair(first_pair + pair, n2, symmetric, i, j);
        first = images1 + i * stages * STAGE, second = images2 + j * stages * STAGE;
        out = partial + (pair * (CHUNKS + 1) + 1 + chunk) * 2 * reads;
    }
    __syncthreads();
    Place place = Place::of_lane();

    for (int round = 0; round < ROUNDS; round++) {
        const int plane = (round * WARPS + warp) * PLANES + place.slot, group = plane / ROWS, d1 = plane % ROWS;
        const int d2 = chunk * GROUP + group;
        const bool there = place.slot < PLANES && group < GROUP && d2 < COLUMNS;
        place.cut(there, d1, d2);
        const bool counts = there && (d1 != 0 || d2 != 0);  // the zero offset is computed apart, in double
        const int a = place.row * PADDED_COLUMNS + place.column;
        const int b = STAGE + (there ? group : 0) * 2 * WRAPPED + (place.row + d1) % ROWS * PADDED_COLUMNS + place.column;
        unsigned bits = 0;  // of `read`, for 32 layers
        int slot = 0;       // of the next readout
        // Thread 0 adds up the warps' R, thread 1 their K.
        const auto flush = [&](int stage) {
            if (!(bits >> (stage - channels) % 32 & 1) || threadIdx.x > 1) return;
            double sum = 0;
            for (int w = 0; w < WARPS; w++) sum += sums[opaque(stage) % 2][threadIdx.x][w];
            double* to = out + threadIdx.x * reads + slot++;
            *to = round ? *to + sum : sum;
        };
        // Waits for a stage's tables, has the next ones copied, and finishes the sums of the stage before.
        const auto enter = [&](int stage) -> const float* {
            const whole next = (whole)(BUFFERS == 2 ? stage + 1 : stage) * STAGE;
            if (BUFFERS == 1) {
                __syncthreads();
                fill(buffers[0], first + next, second + next, chunk * GROUP);
            }
            wait_for_copies();
            __syncthreads();
            if (BUFFERS == 2 && stage + 1 < stages)
                fill(buffers[(stage + 1) % 2], first + next, second + next, chunk * GROUP);
            if (stage > channels) flush(stage - 1);
            return buffers[BUFFERS == 2 ? stage % 2 : 0];
        };
        const auto leave = [&](int stage, const Tile& s, const Tile& t) {
            const int h = stage - channels;
            if (h % 32 == 0) bits = read[h / 32];
            if (!(bits >> h % 32 & 1)) return;
            const double r = lane_sum<32>(counts ? tile_sum(t) : 0.0), k = lane_sum<32>(counts ? tile_sum(s) : 0.0);
            if (threadIdx.x % 32 == 0) sums[stage % 2][0][warp] = r, sums[stage % 2][1][warp] = k;
        };
        Tile s = {}, t = {};
        int near = 0;
        if (BUFFERS == 2) fill(buffers[0], first, second, chunk * GROUP);
        for (int stage = 0; stage < stages; stage++) {
            const float* tables = enter(stage);
            if (stage < channels) {
                multiply_channels(s, tables + a, tables + b, WRAPPED);
                continue;
            }
            if (stage == channels)
                layer<true, false>(s, t, place, tables + a, tables + b, WRAPPED, near);
            else
                layer<false, false>(s, t, place, tables + a, tables + b, WRAPPED, near);
            leave(stage, s, t);
        }
        __syncthreads();
        flush(stages - 1);
    }
}

// Adds a pair's partial sums in order. out: [2][reads][n1][n2], strides in doubles.
__global__ void ntk_collect(const double* partial, const double* scale1, const double* scale2, whole n2, whole symmetric,
                            whole first_pair, whole pairs, whole reads, double* out, whole row, whole readout) {
    const whole k = (whole)blockIdx.x * blockDim.x + threadIdx.x, pair = k / (2 * reads), slot = k % (2 * reads);
    if (pair >= pairs) return;
    whole i, j;
    find_pair(first_pair + pair, n2, symmetric, i, j);
    double sum = 0;
    for (int chunk = 0; chunk <= CHUNKS; chunk++) sum += partial[(pair * (CHUNKS + 1) + chunk) * 2 * reads + slot];
    out[slot * readout + i * row + j] = sum * (scale1[i] * scale2[j]);
}

// Vanilla: a block takes one or two first images, and PLANES second ones for each of the warps of either. Blocks walk
// panels, PANEL of them wide and every row high: those at work together then share the tables of few images, and those of
// a panel's second images stay in the second-level cache. first_block: of this launch. Pairs to be
// computed again in double, equal by hash or nearly equal, are appended to again[1 ...] with the first readout from which
// on they are, their number in again[0]. Nearly equal is a matter of the layers up to a readout: its value does not
// depend on the depths asked for beside it.
__global__ void __launch_bounds__(THREADS, BLOCKS_AN_SM)
ntk_vanilla(const float* images1, const float* images2, const double* scale1, const double* scale2, const whole* hash1,
            const whole* hash2, whole n1, whole n2, whole symmetric, whole channel_stages, whole layers,
            const unsigned* read, whole reads, double* out, whole row, whole readout, int* again, whole first_block) {
    const int warp = threadIdx.x / 32;
    const whole panel_blocks = (n1 + DOWN - 1) / DOWN * PANEL, block = first_block + blockIdx.x;
    const whole first_row = block % panel_blocks / PANEL * DOWN;
    const whole first_column = (block / panel_blocks * PANEL + block % PANEL) * ACROSS;
    if (first_column >= n2 || (symmetric && first_column > first_row + DOWN - 1)) return;
    Place place = Place::of_lane();
    const whole i = first_row + warp / WARPS_ACROSS;
    const whole j = first_column + warp % WARPS_ACROSS * PLANES + place.slot;
    const bool there = place.slot < PLANES && i < n1 && j < n2 && (!symmetric || j <= i);
    place.cut(there, 0, 0);
    const whole stages = channel_stages + layers, at = place.row * PADDED_COLUMNS + place.column;
    const float* a = images1 + (there ? i : 0) * stages * STAGE + at;
    const float* b = images2 + (there ? j : 0) * stages * STAGE + at;
    const bool leader = there && threadIdx.x % 32 % LANES == 0;
    // A plane's first lane keeps these in shared memory, for registers are short.
    __shared__ double* volatile outs[WARPS][PLANES];
    __shared__ volatile double scales[WARPS][PLANES];
    __shared__ volatile int again_from[WARPS][PLANES], pairs[WARPS][PLANES];
    if (leader) {
        outs[warp][place.slot] = out + i * row + j;
        scales[warp][place.slot] = scale1[i] * scale2[j];
        again_from[warp][place.slot] = hash1[i] == hash2[j] ? 0 : (int)reads;
        pairs[warp][place.slot] = (int)(i * n2 + j);
    }
    unsigned bits = 0;
    int near = 0, slot = 0;
    const auto leave = [&](int h, const Tile& s, const Tile& t) {
        if (h % 32 == 0) bits = read[h / 32];
        if (!(bits >> h % 32 & 1)) return;
        const double r = lane_sum<LANES>(tile_sum(t)), k = lane_sum<LANES>(tile_sum(s));
        const int so_far = lane_sum<LANES>(near);
        if (leader) {
            const int w = opaque((int)threadIdx.x) / 32;
            if (so_far * NEAR_ONE_SHARE > PIXELS && slot < again_from[w][place.slot]) again_from[w][place.slot] = slot;
            double* to = outs[w][place.slot] + slot * readout;
            to[0] = r * scales[w][place.slot], to[reads * readout] = k * scales[w][place.slot];
        }
        slot++;
    };
    Tile s = {}, t;
    for (int stage = 0; stage < channel_stages; stage++, a += STAGE, b += STAGE) multiply_channels(s, a, b, TABLE);
    layer<true, true>(s, t, place, a, b, TABLE, near);
    leave(0, s, t);
    for (int h = 1; h < layers; h++) {
        a += STAGE, b += STAGE;
        __syncthreads();  // keeps the block's warps on the same tables, which they share through the cache
        layer<false, true>(s, t, place, a, b, TABLE, near);
        leave(h, s, t);
    }
    if (leader && again_from[warp][place.slot] < reads) {
        int* entry = again + 1 + 2 * atomicAdd(again, 1);
        entry[0] = pairs[warp][place.slot], entry[1] = again_from[warp][place.slot];
    }
}

// The zero offset in double, a block a pair. exact1, exact2 (n, channels + 2 layers, PIXELS): channels, then deviations and
// reciprocals of each layer. For `pairs` pairs from first_pair on, to entry 0 of `partial`; or, where `again` is given, for
// so many of the pairs that it lists (see ntk_vanilla), to `out`.
__global__ void __launch_bounds__(ZERO_OFFSET_THREADS)
ntk_zero_offset(const double* exact1, const double* exact2, const whole* hash1, const whole* hash2, whole n2,
                whole symmetric, whole first_pair, whole pairs, whole channels, whole layers, const unsigned* read,
                whole reads, double* partial, const int* again, const double* scale1, const double* scale2, double* out,
                whole row, whole readout) {
    constexpr int EACH = (PIXELS + ZERO_OFFSET_THREADS - 1) / ZERO_OFFSET_THREADS;
    __shared__ double s[PIXELS], t[PIXELS], sums[2][ZERO_OFFSET_THREADS / 32];
    __shared__ int differ;
    const whole floats = (channels + 2 * layers) * PIXELS;
    whole count = pairs;
    if (again && again[0] - first_pair < count) count = again[0] - first_pair;
    if (again) again += 1 + 2 * first_pair;
    for (whole pair = blockIdx.x; pair < count; pair += gridDim.x) {
        whole i, j;
        find_pair(again ? again[2 * pair] : first_pair + pair, n2, again ? 0 : symmetric, i, j);
        const double *x = exact1 + i * floats, *y = exact2 + j * floats;
        __syncthreads();
        if (threadIdx.x == 0) differ = hash1[i] != hash2[j];
        __syncthreads();
        for (whole p = threadIdx.x; p < PIXELS; p += ZERO_OFFSET_THREADS) {
            double sum = 0;
            for (whole c = 0; c < channels; c++) {
                sum += x[c * PIXELS + p] * y[c * PIXELS + p];
                if (x[c * PIXELS + p] != y[c * PIXELS + p]) differ = 1;
            }
            s[p] = sum, t[p] = TRAIN_FIRST ? sum : 0.0;
        }
        __syncthreads();
        const bool equal = !differ && scale1[i] == scale2[j];  // then lam = 1 and S = n at every layer
        unsigned bits = 0;
        int slot = 0;
        for (int h = 0; h < layers; h++) {
            if (h % 32 == 0) bits = read[h / 32];
            const bool reads_out = bits >> h % 32 & 1;
            const double *d1 = x + (channels + 2 * h) * PIXELS, *d2 = y + (channels + 2 * h) * PIXELS;
            double k[EACH], r[EACH], sum_k = 0, sum_r = 0;
            for (int e = 0; e < EACH; e++) {
                const int p = threadIdx.x + e * ZERO_OFFSET_THREADS, row0 = p / COLUMNS, column0 = p % COLUMNS;
                if (p >= PIXELS) break;
                double S = 0, T = 0, lam;
                for (int u = row0 > 0 ? -1 : 0; u <= (row0 + 1 < ROWS ? 1 : 0); u++)
                    for (int v = column0 > 0 ? -1 : 0; v <= (column0 + 1 < COLUMNS ? 1 : 0); v++)
                        S += s[p + u * COLUMNS + v], T += t[p + u * COLUMNS + v];
                const double deviation = d1[p] * d2[p], inverse = d1[PIXELS + p] * d2[PIXELS + p];
                relu_layer<true, true>(equal ? deviation : S, T, inverse, deviation, k[e], r[e], lam);
                sum_k += k[e], sum_r += r[e];
            }
            __syncthreads();
            for (int e = 0; e < EACH; e++) {
                const int p = threadIdx.x + e * ZERO_OFFSET_THREADS;
                if (p < PIXELS) s[p] = k[e], t[p] = r[e];
            }
            if (reads_out) {
                sum_r = lane_sum<32>(sum_r), sum_k = lane_sum<32>(sum_k);
                if (threadIdx.x % 32 == 0) sums[0][threadIdx.x / 32] = sum_r, sums[1][threadIdx.x / 32] = sum_k;
            }
            __syncthreads();
            if (reads_out && threadIdx.x < 2) {
                double sum = 0;
                for (int w = 0; w < ZERO_OFFSET_THREADS / 32; w++) sum += sums[threadIdx.x][w];
                const whole place = threadIdx.x * reads + slot;
                if (again && slot >= again[1 + 2 * pair])
                    out[place * readout + i * row + j] = sum * (scale1[i] * scale2[j]);
                else if (!again)
                    partial[pair * (CHUNKS + 1) * 2 * reads + place] = sum;
            }
            slot += reads_out;
        }
    }
}

// Multiply-adds and nothing else: CHAINS a thread hide their latency, CHAIN_STEPS in each a round. Timing it gives the
// limit that speed is measured against.
__global__ void ntk_multiply_adds(whole rounds, float* out) {
    float v[CHAINS];
#pragma unroll
    for (int c = 0; c < CHAINS; c++) v[c] = (float)(threadIdx.x + c);
#pragma unroll 1
    for (int round = 0; round < (int)rounds; round++)
#pragma unroll
        for (int k = 0; k < CHAIN_STEPS; k++)
#pragma unroll
            for (int c = 0; c < CHAINS; c++) v[c] = v[c] * 0.999f + 0.001f;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < CHAINS; c++) sum += v[c];
    out[(whole)blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
}
