// The CNTK on a GPU: pairs of images led through the planes of warp.cuh. See gpu.py for the interface and for what
// defines the macros below.
#include "warp.cuh"
#include "windows.h"

constexpr int NEAR_ONE_SHARE = 64;  // as on a CPU: see vanilla.h
constexpr int ZERO_OFFSET_THREADS = PIXELS < 256 ? (PIXELS + 31) / 32 * 32 : 256;
// Vanilla: a block's first images, and its second ones.
constexpr int DOWN = WARPS % 2 ? 1 : 2, WARPS_ACROSS = WARPS / DOWN, ACROSS = WARPS_ACROSS * PLANES;
// Of the rate at which multiply-adds start: a round has so many a chain that its loop costs nothing beside them.
constexpr int CHAINS = 8, CHAIN_STEPS = 32;

// Poolings of one pass: where WINDOWS, each sums over windows of pixels or over every pair of them; else one, over all.
constexpr int EVERY_PAIR = -1, MOST_POOLINGS = WINDOWS ? 4 : 1;

// Sums of a lane's entries of R and K, each times the number of windows that hold both its pixels.
NTK_INLINE void window_sums(const Tile& t, const Tile& s, int c, int row, int column, int d1, int d2, double& r, double& k) {
    float across[LANE_COLUMNS], sum_r = 0, sum_k = 0;
#pragma unroll
    for (int l = 0; l < LANE_COLUMNS; l++)
        across[l] = (float)windows_with_both(COLUMNS, c, column + l, (column + l + d2) % COLUMNS);
#pragma unroll
    for (int l = 0; l < LANE_ROWS; l++) {
        float row_r = 0, row_k = 0;
#pragma unroll
        for (int m = 0; m < LANE_COLUMNS; m++) row_r += across[m] * t[l][m], row_k += across[m] * s[l][m];
        const float down = (float)windows_with_both(ROWS, c, row + l, (row + l + d1) % ROWS);
        sum_r += row_r * down, sum_k += row_k * down;
    }
    r = sum_r, k = sum_k;
}

// How many windows hold pixel p.
NTK_INLINE int windows_at(int p, int c) {
    const int row = p / COLUMNS, column = p % COLUMNS;
    return windows_with_both(ROWS, c, row, row) * windows_with_both(COLUMNS, c, column, column);
}

// Offsets in the order of their distance from 0 on a circle of ROWS: 0, 1, -1, 2, -2, ...
NTK_INLINE int around_zero(int index) { return index % 2 ? (index + 1) / 2 % ROWS : (ROWS - index / 2 % ROWS) % ROWS; }

extern "C" {

// Global and local average pooling. A block takes one pair and GROUP offsets d2, with `down` d1: those nearest 0, on a
// circle. Of a pair's groups the first `low` and the last are taken, `chunks` in all: the others no window reaches. What
// is left out would add 0, in the same order: a pooling's value does not depend on those beside it.
// images1, images2: (n, channel_stages + layers, 2, PADDED_ROWS, PADDED_COLUMNS).  read: a bit a layer, 32 a word: whether
// it is read out.  windows: c of a window for each pooling, or EVERY_PAIR.  partial (pairs, chunks + 1, 2, poolings,
// reads): sums of R, then of K, from 1 on; 0 is the zero offset.
__global__ void __launch_bounds__(THREADS, BLOCKS_AN_SM)
ntk_pooled(const float* images1, const float* images2, whole n2, whole symmetric, whole first_pair, whole channel_stages,
           whole layers, const unsigned* read, whole reads, double* partial, const whole* windows, whole pooling_count,
           whole offsets_down, whole reached_chunks, whole low) {
    __shared__ __align__(16) float buffers[BUFFERS][BUFFER];
    __shared__ double sums[2][2 * MOST_POOLINGS][WARPS];
    const int poolings = WINDOWS ? (int)pooling_count : 1, down = WINDOWS ? (int)offsets_down : ROWS;
    const int chunks = WINDOWS ? (int)reached_chunks : CHUNKS;
    const int part = blockIdx.x % chunks, chunk = WINDOWS && part >= (int)low ? part + CHUNKS - chunks : part;
    const int warp = threadIdx.x / 32, channels = (int)channel_stages, stages = channels + (int)layers;
    // In shared memory, and read anew each time, for registers are short.
    __shared__ const float *volatile first, *volatile second;
    __shared__ double* out;
    if (threadIdx.x == 0) {
        const whole pair = blockIdx.x / chunks;
        whole i, j;
        find_pair(first_pair + pair, n2, symmetric, i, j);
        first = images1 + i * stages * STAGE, second = images2 + j * stages * STAGE;
        out = partial + (pair * (chunks + 1) + 1 + part) * 2 * poolings * reads;
    }
    __syncthreads();
    Place place = Place::of_thread(threadIdx.x);

    for (int round = 0; round * WARPS * PLANES < GROUP * down; round++) {
        const int plane = (round * WARPS + warp) * PLANES + place.slot, group = plane % GROUP;
        const int d1 = around_zero(plane / GROUP), d2 = chunk * GROUP + group;
        const bool there = place.slot < PLANES && plane < GROUP * down && d2 < COLUMNS;
        place.cut(there, d1, d2);
        const bool counts = there && (d1 != 0 || d2 != 0);  // the zero offset is computed apart, in double
        const int a = place.row * PADDED_COLUMNS + place.column;
        const int b = STAGE + group * 2 * WRAPPED + (place.row + d1) % ROWS * PADDED_COLUMNS + place.column;
        unsigned bits = 0;  // of `read`, for 32 layers
        int slot = 0;       // of the next readout
        // A thread for each pooling adds up the warps' R, and one their K.
        const auto flush = [&](int stage) {
            if (!(bits >> (stage - channels) % 32 & 1) || threadIdx.x >= 2 * poolings) return;
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
            for (int w = 0; w < poolings; w++) {
                const int c = WINDOWS ? (int)windows[w] : EVERY_PAIR;
                double r, k;
                if (c == EVERY_PAIR) {
                    r = tile_sum(t), k = tile_sum(s);
                } else {  // found again, for registers are short
                    const int thread = opaque((int)threadIdx.x);
                    const Place at = Place::of_thread(thread);
                    const int plane = (round * WARPS + thread / 32) * PLANES + at.slot;
                    const int d1 = around_zero(plane / GROUP), d2 = chunk * GROUP + plane % GROUP;
                    window_sums(t, s, c, at.row, at.column, d1, d2, r, k);
                }
                r = lane_sum<32>(counts ? r : 0.0), k = lane_sum<32>(counts ? k : 0.0);
                if (threadIdx.x % 32 == 0) sums[stage % 2][w][warp] = r, sums[stage % 2][poolings + w][warp] = k;
            }
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

// Adds a pair's partial sums in order: (chunks + 1) of each. out: [2][reads][n1][n2], strides in doubles; reads: of all
// poolings.
__global__ void ntk_collect(const double* partial, const double* scale1, const double* scale2, whole n2, whole symmetric,
                            whole first_pair, whole pairs, whole reads, whole chunks, double* out, whole row,
                            whole readout) {
    const whole k = (whole)blockIdx.x * blockDim.x + threadIdx.x, pair = k / (2 * reads), slot = k % (2 * reads);
    if (pair >= pairs) return;
    whole i, j;
    find_pair(first_pair + pair, n2, symmetric, i, j);
    double sum = 0;
    for (int chunk = 0; chunk <= chunks; chunk++) sum += partial[(pair * (chunks + 1) + chunk) * 2 * reads + slot];
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
    Place place = Place::of_thread(threadIdx.x);
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
                whole reads, double* partial, const whole* windows, whole pooling_count, whole chunks, const int* again,
                const double* scale1, const double* scale2, double* out, whole row, whole readout) {
    constexpr int EACH = (PIXELS + ZERO_OFFSET_THREADS - 1) / ZERO_OFFSET_THREADS;
    __shared__ double s[PIXELS], t[PIXELS], sums[2 * MOST_POOLINGS][ZERO_OFFSET_THREADS / 32];
    const int poolings = WINDOWS ? (int)pooling_count : 1;
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
            double k[EACH], r[EACH];
            for (int e = 0; e < EACH; e++) {
                const int p = threadIdx.x + e * ZERO_OFFSET_THREADS, row0 = p / COLUMNS, column0 = p % COLUMNS;
                if (p >= PIXELS) break;
                double S = 0, T = 0, lam;
                for (int u = row0 > 0 ? -1 : 0; u <= (row0 + 1 < ROWS ? 1 : 0); u++)
                    for (int v = column0 > 0 ? -1 : 0; v <= (column0 + 1 < COLUMNS ? 1 : 0); v++)
                        S += s[p + u * COLUMNS + v], T += t[p + u * COLUMNS + v];
                const double deviation = d1[p] * d2[p], inverse = d1[PIXELS + p] * d2[PIXELS + p];
                relu_layer<true, true>(equal ? deviation : S, T, inverse, deviation, k[e], r[e], lam);
            }
            __syncthreads();
            for (int e = 0; e < EACH; e++) {
                const int p = threadIdx.x + e * ZERO_OFFSET_THREADS;
                if (p < PIXELS) s[p] = k[e], t[p] = r[e];
            }
            for (int w = 0; w < (reads_out ? poolings : 0); w++) {
                const int c = WINDOWS ? (int)windows[w] : EVERY_PAIR;
                double sum_k = 0, sum_r = 0;
                for (int e = 0; e < EACH; e++) {
                    const int p = threadIdx.x + e * ZERO_OFFSET_THREADS;
                    if (p >= PIXELS) break;
                    const double weight = c == EVERY_PAIR ? 1 : windows_at(p, c);
                    sum_k += weight * k[e], sum_r += weight * r[e];
                }
                sum_r = lane_sum<32>(sum_r), sum_k = lane_sum<32>(sum_k);
                if (threadIdx.x % 32 == 0) sums[w][threadIdx.x / 32] = sum_r, sums[poolings + w][threadIdx.x / 32] = sum_k;
            }
            __syncthreads();
            if (reads_out && threadIdx.x < 2 * poolings) {
                double sum = 0;
                for (int w = 0; w < ZERO_OFFSET_THREADS / 32; w++) sum += sums[threadIdx.x][w];
                const whole place = threadIdx.x * reads + slot;
                if (again && slot >= again[1 + 2 * pair])
                    out[place * readout + i * row + j] = sum * (scale1[i] * scale2[j]);
                else if (!again)
                    partial[pair * (chunks + 1) * 2 * poolings * reads + place] = sum;
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
