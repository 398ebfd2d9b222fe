// A level of a Myrtle network on a GPU: planes from the image's channels, or from what the level before has pooled, through
// the level's layers, and pooled again or, on the last level, summed. One source, compiled for each level with its layout.
// See gpu_myrtle.py for the interface and for what defines the macros below beside those of warp.cuh:
// LEVEL (1, 2, 3), LEVEL_NAME, NEXT_PADDED_ROWS and NEXT_PADDED_COLUMNS (of the tables of the level after it).
//
// A pool is the mean over the 2 x 2 pixels of both images: entry (p, p') of a level goes to (p / 2, p' / 2) of the next, so
// an even offset goes to half of it, and an odd one, by the parity of p, to the offsets around its half. A walker, some lanes
// of a warp, leads the planes of one d2 with d1 one after another: what an offset of the next level gets from three of
// them adds up in its threads. What it gets from three d2 is kept in PARTS, whose sum the next level starts from. So nothing
// is added to by two at once, and every sum has one order.
#include "warp.cuh"

constexpr int LEVELS = 3, PARTS = 3;  // PARTS: from d2 = 2 D2, from 2 D2 + 1 its even columns, from 2 D2 - 1 its odd ones
constexpr bool POOLS = LEVEL < LEVELS;
constexpr int KINDS = WITH_NTK ? 2 : 1;  // K, then R
constexpr int NEXT_ROWS = POOLS ? ROWS / 2 : 1, NEXT_COLUMNS = POOLS ? COLUMNS / 2 : 1;
constexpr int NEXT_TABLE = NEXT_PADDED_ROWS * NEXT_PADDED_COLUMNS;
// Walkers of each d2, and how many d1 each has; an even number where planes are pooled.
constexpr int WALKERS = WARPS * PLANES, RUNS = WALKERS / GROUP, SHORTEST = (ROWS + RUNS - 1) / RUNS;
constexpr int RUN = POOLS ? (SHORTEST + 1) / 2 * 2 : SHORTEST;
constexpr float POOLED = 1.f / 16;  // of a sum over the 2 x 2 pixels of both images
// As in the CPU kernels (myrtle.h): a pair with more correlations above 1 - NEAR_ONE at a level's zero offset than one in so
// many is computed again in double. Told by K: 9 K / n = kappa_1(lam), which grows with lam.
constexpr int NEAR_SHARE = 4;
constexpr float NEAR_ONE_KAPPA = 0.99900950f;  // kappa_1(1 - NEAR_ONE)

// A tile pooled along rows and columns: from its even and from its odd columns, or from both, and from none.
constexpr int HALF_ROWS = POOLS ? LANE_ROWS / 2 : 1, HALF_COLUMNS = POOLS ? LANE_COLUMNS / 2 : 1;
typedef float Half[HALF_ROWS][HALF_COLUMNS];
// Volatile, so that it lies in the thread's own memory: it is used once a plane, and registers are short in every layer.
typedef volatile float Kept[2][HALF_ROWS][HALF_COLUMNS];

// Adds the tile's rows of one parity, pooled. both: 1 where even and odd columns go to the first half, else 0.
template <int PARITY> NTK_INLINE void add_rows(Half (&to)[2], const Tile& v, float both) {
#pragma unroll
    for (int r = 0; r < HALF_ROWS; r++)
#pragma unroll
        for (int c = 0; c < HALF_COLUMNS; c++) {
            const float even = v[2 * r + PARITY][2 * c], odd = v[2 * r + PARITY][2 * c + 1];
            to[0][r][c] += even + both * odd, to[1][r][c] += odd;
        }
}

template <class To, class From> NTK_INLINE void copy(To& to, const From& from) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int r = 0; r < HALF_ROWS; r++)
#pragma unroll
            for (int c = 0; c < HALF_COLUMNS; c++) to[half][r][c] = from[half][r][c];
}

// Writes half a tile to a table, or adds it to what is there.
template <bool ADD, class Values> NTK_INLINE void put(float* to, const Values& v, const Place& place) {
    constexpr bool twos = HALF_COLUMNS % 2 == 0 && NEXT_COLUMNS % 2 == 0 && NEXT_PADDED_COLUMNS % 2 == 0;
    to += place.row / 2 * NEXT_PADDED_COLUMNS + place.column / 2;
#pragma unroll
    for (int r = 0; r < HALF_ROWS; r++, to += NEXT_PADDED_COLUMNS) {
        if (ROWS % LANE_ROWS && place.row / 2 + r >= NEXT_ROWS) break;
#pragma unroll
        for (int c = 0; c < HALF_COLUMNS; c += twos ? 2 : 1) {
            if (COLUMNS % LANE_COLUMNS && place.column / 2 + c >= NEXT_COLUMNS) break;
            if constexpr (twos) {
                float2 pair = {v[r][c], v[r][c + 1]};
                float2* at = (float2*)(to + c);
                if (ADD) pair.x += at->x, pair.y += at->y;
                *at = pair;
            } else {
                to[c] = ADD ? to[c] + v[r][c] : v[r][c];
            }
        }
    }
}

// A plane of K or R: what an even d1 has is kept, and completed and written by the odd one after it, whose odd rows are kept.
// to: the tables of the two halves.
NTK_INLINE void pool(Kept& kept, const Tile& v, bool even_d1, bool even_d2, float* const (&to)[2], const Place& place) {
    const float both = even_d2 ? 1.f : 0.f;
    Half halves[2];
    copy(halves, kept);
    add_rows<0>(halves, v, both);
    if (!even_d1) {
        put<false>(to[0], halves[0], place);
        if (!even_d2) put<false>(to[1], halves[1], place);
        constexpr Half none[2] = {};
        copy(halves, none);
    }
    add_rows<1>(halves, v, both);
    copy(kept, halves);
}

// What the level before has left of K or R for a plane: PARTS tables, KINDS tables apart.
NTK_INLINE void add_parts(const float* from, Tile& v) {
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++) {
        float part[PARTS][LANE_COLUMNS];
#pragma unroll
        for (int k = 0; k < PARTS; k++) load_row(from + k * KINDS * TABLE + r * PADDED_COLUMNS, part[k]);
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) v[r][c] = (part[0][c] + part[1][c] + part[2][c]) * POOLED;
    }
}

// How many correlations of a lane's tile are nearly 1, after the layer whose tables these are.
NTK_INLINE int count_near(const Tile& k, const float* a, const float* b, int other) {
    int near = 0;
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) {
            const float inverse = a[TABLE + r * PADDED_COLUMNS + c] * b[other + r * PADDED_COLUMNS + c];
            near += 9.f * k[r][c] * inverse > NEAR_ONE_KAPPA;
        }
    return near;
}

extern "C" {

// A block takes one pair and GROUP offsets d2, with every d1: pair first_pair + blockIdx.x / CHUNKS.
// images1, images2: (n, channel_stages + layers, 2, PADDED_ROWS, PADDED_COLUMNS), channels on the first level only.
// from: (pairs, COLUMNS, ROWS, PARTS, KINDS, TABLE), by d2 and d1; to: the same of the next level; padding is 0 and stays so.
// partial (pairs, CHUNKS, 2): on the last level sums of R and of K.  near_pairs (pairs): set to 1 where nearly equal.
__global__ void __launch_bounds__(THREADS, BLOCKS_AN_SM)
LEVEL_NAME(const float* images1, const float* images2, whole n2, whole symmetric, whole first_pair, whole channel_stages,
           whole layers, const float* from, float* to, double* partial, int* near_pairs) {
    __shared__ __align__(16) float buffers[BUFFERS][BUFFER];
    __shared__ double sums[2][WARPS];
    const int warp = threadIdx.x / 32, chunk = blockIdx.x % CHUNKS, channels = LEVEL == 1 ? (int)channel_stages : 0;
    const int stages = channels + (int)layers;
    const whole pair = blockIdx.x / CHUNKS;
    // In shared memory, and read anew each time, for registers are short.
    __shared__ const float *volatile first, *volatile second;
    if (threadIdx.x == 0) {
        whole i, j;
        find_pair(first_pair + pair, n2, symmetric, i, j);
        first = images1 + i * stages * STAGE, second = images2 + j * stages * STAGE;
    }
    __syncthreads();
    Place place = Place::of_thread(threadIdx.x);
    const int walker = warp * PLANES + place.slot, group = walker / RUNS, begin = walker % RUNS * RUN;
    const int d2 = chunk * GROUP + group;
    const bool walks = place.slot < PLANES && group < GROUP && d2 < COLUMNS && begin < ROWS;

    // Waits for a stage's tables and has the next ones copied, of the next plane after the last: they are the same for all.
    const auto enter = [&](int round, int stage) -> const float* {
        const int step = round * stages + stage, next = stage + 1 < stages ? stage + 1 : 0;
        if (BUFFERS == 1) {
            __syncthreads();
            fill(buffers[0], first + (whole)stage * STAGE, second + (whole)stage * STAGE, chunk * GROUP);
        }
        wait_for_copies();
        __syncthreads();
        if (BUFFERS == 2 && step + 1 < RUN * stages)
            fill(buffers[(step + 1) % 2], first + (whole)next * STAGE, second + (whole)next * STAGE, chunk * GROUP);
        return buffers[BUFFERS == 2 ? step % 2 : 0];
    };
    // The tables of the next level that get what was added up for D1: 0 from all or from the even columns, 1 from the odd ones.
    const auto target = [&](int D1, int half) {
        const int D2 = half ? (d2 + 1) / 2 % NEXT_COLUMNS : d2 / 2, part = half ? 2 : d2 % 2;
        return to + (((pair * NEXT_COLUMNS + D2) * NEXT_ROWS + D1) * PARTS + part) * KINDS * NEXT_TABLE;
    };
    Kept k_kept = {}, r_kept = {};
    double sum_r = 0, sum_k = 0;
    if (BUFFERS == 2) fill(buffers[0], first, second, chunk * GROUP);
#pragma unroll 1
    for (int round = 0; round < RUN; round++) {
        const int d1 = begin + round;
        const bool there = walks && d1 < ROWS;
        place.cut(there, d1, d2);
        const int a = place.row * PADDED_COLUMNS + place.column;
        const int b = STAGE + (walks ? group : 0) * 2 * WRAPPED + (place.row + d1) % ROWS * PADDED_COLUMNS + place.column;
        const bool watched = chunk == 0 && warp == 0 && round == 0;  // has the zero offset in its first plane
        Tile s = {}, t = {};
        int near = 0;
        if (LEVEL > 1 && there) {
            const float* plane = from + ((pair * COLUMNS + d2) * ROWS + d1) * PARTS * KINDS * TABLE + a;
            add_parts(plane, s);
            if (WITH_NTK) add_parts(plane + TABLE, t);
        }
#pragma unroll 1
        for (int stage = 0; stage < stages; stage++) {
            const float* tables = enter(round, stage);
            if (LEVEL == 1 && stage < channels) {
                multiply_channels(s, tables + a, tables + b, WRAPPED);
                continue;
            }
            if (LEVEL == 1 && stage == channels)
                layer<LEVEL == 1, false>(s, t, place, tables + a, tables + b, WRAPPED, near);
            else
                layer<false, false>(s, t, place, tables + a, tables + b, WRAPPED, near);
            if (watched) near += count_near(s, tables + opaque(a), tables + opaque(b), WRAPPED);
        }
        if (watched) {
            near = lane_sum<LANES>(near);
            if (threadIdx.x == 0 && near * NEAR_SHARE > PIXELS * (int)layers) near_pairs[pair] = 1;
        }
        if constexpr (!POOLS) {
            sum_r += there ? tile_sum(t) : 0.0, sum_k += there ? tile_sum(s) : 0.0;
        } else if (there) {
            float* to_k[2] = {target(d1 / 2, 0), target(d1 / 2, 1)};
            float* to_r[2] = {to_k[0] + NEXT_TABLE, to_k[1] + NEXT_TABLE};
            pool(k_kept, s, round % 2 == 0, d2 % 2 == 0, to_k, place);
            if (WITH_NTK) pool(r_kept, t, round % 2 == 0, d2 % 2 == 0, to_r, place);
        }
    }
    __syncthreads();
    if constexpr (POOLS) {
        // The odd rows of a run's last plane belong to the first offset of the run after it, which is written by now.
        if (!walks) return;
        const int D1 = (begin + RUN < ROWS ? begin + RUN : ROWS) / 2 % NEXT_ROWS;
        for (int half = 0; half <= d2 % 2; half++) {
            put<true>(target(D1, half), k_kept[half], place);
            if (WITH_NTK) put<true>(target(D1, half) + NEXT_TABLE, r_kept[half], place);
        }
    } else {
        sum_r = lane_sum<32>(sum_r), sum_k = lane_sum<32>(sum_k);
        if (threadIdx.x % 32 == 0) sums[0][warp] = sum_r, sums[1][warp] = sum_k;
        __syncthreads();
        if (threadIdx.x > 1) return;
        double sum = 0;
        for (int w = 0; w < WARPS; w++) sum += sums[threadIdx.x][w];
        partial[(pair * CHUNKS + chunk) * 2 + threadIdx.x] = sum;
    }
}
}
