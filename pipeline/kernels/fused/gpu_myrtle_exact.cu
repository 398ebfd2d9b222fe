// What ends a pass over pairs of a Myrtle network: their sums are collected, and pairs of equal images and of nearly equal
// ones, where float loses arccos, computed again in double. There a block takes a pair from the channels to the sums, plane
// by plane, and keeps what is pooled in memory of its own.
// See gpu_myrtle.py; the macros are those of the first level's layout.
#include "warp.cuh"

constexpr int LEVELS = 3, EXACT_THREADS = 256;
constexpr int EACH = (PIXELS + EXACT_THREADS - 1) / EXACT_THREADS;

NTK_INLINE constexpr int pixels_of(int level) { return PIXELS >> 2 * level; }
NTK_INLINE constexpr int entries_of(int level) { return pixels_of(level) * pixels_of(level); }
// Doubles that a block keeps: K and R of the second level and of the third, entry P of plane (D2, D1) at P.
constexpr whole KEPT = 2 * (entries_of(1) + entries_of(2));

struct ExactPair {
    const double *x, *y;  // of both images what is left to read: channels, then a level's deviations and reciprocals
    whole channels;
    bool equal;
    double sum_r, sum_k;
};

// All planes of a level. kept: what they start from; next: what they are added to, all 0.
template <int LEVEL>
NTK_INLINE void exact_level(ExactPair& pair, whole layers, double* s, double* t, const double* kept, double* next) {
    constexpr int rows = ROWS >> LEVEL, columns = COLUMNS >> LEVEL, pixels = rows * columns;
    constexpr bool last = LEVEL + 1 == LEVELS;
    for (int plane = 0; plane < pixels; plane++) {
        const int d1 = plane % rows, d2 = plane / rows;
        const bool same = pair.equal && plane == 0;
        const auto other = [&](int row, int column) { return (row + d1) % rows * columns + (column + d2) % columns; };
        for (int p = threadIdx.x; p < pixels; p += EXACT_THREADS) {
            double k = 0, r;
            if (LEVEL == 0) {
                const int q = other(p / columns, p % columns);
                for (whole c = 0; c < pair.channels; c++) k += pair.x[c * pixels + p] * pair.y[c * pixels + q];
                r = TRAIN_FIRST ? k : 0.0;
            } else {
                k = kept[plane * pixels + p] / 16, r = kept[entries_of(LEVEL) + plane * pixels + p] / 16;
            }
            s[p] = k, t[p] = r;
        }
        __syncthreads();
        for (whole h = 0; h < layers; h++) {
            const whole skip = (LEVEL == 0 ? pair.channels : 0) + 2 * h;
            const double *x = pair.x + skip * pixels, *y = pair.y + skip * pixels;
            double k[EACH], r[EACH];
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const int p = threadIdx.x + e * EXACT_THREADS, row = p / columns, column = p % columns;
                if (p >= pixels) break;
                const int q = other(row, column), row2 = q / columns, column2 = q % columns;
                double S = 0, T = 0, lam;
                const int up = row > 0 && row2 > 0, down = row + 1 < rows && row2 + 1 < rows;
                const int left = column > 0 && column2 > 0, right = column + 1 < columns && column2 + 1 < columns;
                for (int u = -up; u <= down; u++)
                    for (int v = -left; v <= right; v++)
                        S += s[p + u * columns + v], T += t[p + u * columns + v];
                const double deviation = x[p] * y[q], inverse = x[pixels + p] * y[pixels + q];
                relu_layer<true, true>(same ? deviation : S, T, inverse, deviation, k[e], r[e], lam);
                if (last && h + 1 == layers) pair.sum_r += r[e], pair.sum_k += k[e];
            }
            __syncthreads();
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const int p = threadIdx.x + e * EXACT_THREADS;
                if (p < pixels) s[p] = k[e], t[p] = r[e];
            }
            __syncthreads();
        }
        if constexpr (!last) {
            // A thread has the same pixels in every plane, so what it adds to is its own.
            for (int P = threadIdx.x; P < pixels / 4; P += EXACT_THREADS)
                for (int a = 0; a < 4; a++) {
                    const int D1 = (d1 + a / 2) / 2 % (rows / 2), D2 = (d2 + a % 2) / 2 % (columns / 2);
                    const int p = (P / (columns / 2) * 2 + a / 2) * columns + P % (columns / 2) * 2 + a % 2;
                    double* to = next + (D2 * (rows / 2) + D1) * (pixels / 4) + P;
                    to[0] += s[p], to[entries_of(LEVEL + 1)] += t[p];
                }
        }
        __syncthreads();
    }
    const whole read = ((LEVEL == 0 ? pair.channels : 0) + 2 * layers) * pixels;
    pair.x += read, pair.y += read;
}

extern "C" {

// Adds a pair's partial sums, from `chunks` blocks of the last level, in order, to out: R's and K's (n1, n2), `row` and `kind`
// doubles apart. Pairs that are equal by hash or were found nearly equal are appended to again[1 ...], their number in
// again[0]; near_pairs is 0 again after it.
__global__ void ntk_myrtle_collect(const double* partial, whole chunks, int* near_pairs, const double* scale1,
                                   const double* scale2, const whole* hash1, const whole* hash2, whole n2, whole symmetric,
                                   whole first_pair, whole pairs, int* again, double* out, whole row, whole kind) {
    const whole pair = (whole)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= pairs) return;
    whole i, j;
    find_pair(first_pair + pair, n2, symmetric, i, j);
    for (int which = 0; which < 2; which++) {
        double sum = 0;
        for (int chunk = 0; chunk < chunks; chunk++) sum += partial[(pair * chunks + chunk) * 2 + which];
        out[which * kind + i * row + j] = sum * (scale1[i] * scale2[j]);
    }
    if (near_pairs[pair] || hash1[i] == hash2[j]) again[1 + atomicAdd(again, 1)] = (int)(i * n2 + j);
    near_pairs[pair] = 0;
}

// exact1, exact2 (n, all that follows): channels (channels, PIXELS), then of every level its layers' deviations and
// reciprocals.  layers1, layers2, layers3: of the levels.  again: the number of pairs and the pairs, of which this launch takes
// `count` from `first_entry` on.  kept: KEPT doubles a block.  out: as above.
__global__ void __launch_bounds__(EXACT_THREADS, 2)
ntk_myrtle_exact(const double* exact1, const double* exact2, const whole* hash1, const whole* hash2, whole n2,
                 whole channels, whole layers1, whole layers2, whole layers3, const int* again, whole first_entry, whole count,
                 const double* scale1, const double* scale2, double* kept, double* out, whole row, whole kind) {
    __shared__ double s[PIXELS], t[PIXELS], sums[2][EXACT_THREADS / 32];
    __shared__ int differ;
    const whole end = first_entry + count < again[0] ? first_entry + count : again[0];
    const whole doubles = (channels + 2 * layers1) * PIXELS + 2 * layers2 * pixels_of(1) + 2 * layers3 * pixels_of(2);
    double *second = kept + blockIdx.x * KEPT, *third = second + 2 * entries_of(1);
    for (whole entry = first_entry + blockIdx.x; entry < end; entry += gridDim.x) {
        whole i, j;
        find_pair(again[1 + entry], n2, 0, i, j);
        ExactPair pair = {exact1 + i * doubles, exact2 + j * doubles, channels, false, 0, 0};
        __syncthreads();
        if (threadIdx.x == 0) differ = hash1[i] != hash2[j] || scale1[i] != scale2[j];
        __syncthreads();
        for (whole p = threadIdx.x; p < channels * PIXELS; p += EXACT_THREADS)
            if (pair.x[p] != pair.y[p]) differ = 1;
        for (whole p = threadIdx.x; p < KEPT; p += EXACT_THREADS) second[p] = 0;
        __syncthreads();
        pair.equal = !differ;  // then lam = 1 and S = n at p = p', on every level
        exact_level<0>(pair, layers1, s, t, nullptr, second);
        exact_level<1>(pair, layers2, s, t, second, third);
        exact_level<2>(pair, layers3, s, t, third, nullptr);
        const double sum_r = lane_sum<32>(pair.sum_r), sum_k = lane_sum<32>(pair.sum_k);
        if (threadIdx.x % 32 == 0) sums[0][threadIdx.x / 32] = sum_r, sums[1][threadIdx.x / 32] = sum_k;
        __syncthreads();
        if (threadIdx.x < 2) {
            double sum = 0;
            for (int w = 0; w < EXACT_THREADS / 32; w++) sum += sums[threadIdx.x][w];
            out[threadIdx.x * kind + i * row + j] = sum * (scale1[i] * scale2[j]);
        }
    }
}
}
