// The CNTK on a CPU: a whole offset plane stays in L1 from the first layer to the last. See cpu.py for the interface.
//
// A row of a plane is LANES floats. Images narrower than LANES put several planes (global average pooling) or several
// pairs (vanilla) side by side in it. `box` never mixes offsets, and planes are cyclic: pixel p of the first image meets
// pixel (p + d) mod (H, W) of the second, and the box is cut where that wraps.
#include "images.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef float loose __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static inline __attribute__((always_inline)) vec root(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX__)
    return (vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE__)
    return (vec)_mm_sqrt_ps((__m128)x);
#else
    for (int k = 0; k < WIDTH; k++) x[k] = __builtin_sqrtf(x[k]);
    return x;
#endif
}

#if defined(__x86_64__)
#define NTK_REGISTER(v) "+v"(v)
#elif defined(__aarch64__)
#define NTK_REGISTER(v) "+w"(v)
#else
#define NTK_REGISTER(v) "+m"(v)
#endif

#include "arithmetic.h"
template <> struct Scalar<vec> { using type = float; };

namespace {

constexpr int VECS = LANES / WIDTH;
constexpr int MAX_ROWS = 64;
constexpr int GUARD = 16;                // finite floats on either side of a plane's row
constexpr int STRIDE = LANES + GUARD;    // the right guard of a row is the left guard of the next
// Correlations above 1 - NEAR_ONE are where float32 loses arccos, those it cannot tell from 1 included; a vanilla pair
// with more of them, over the layers up to a depth, than one in NEAR_ONE_SHARE of its pixels is computed again in double.
constexpr float NEAR_ONE = 1e-3f;
constexpr int NEAR_ONE_SHARE = 64;
constexpr long CACHE_BYTES = 640 << 10;  // of first images' tables at once: most of a core's second-level cache

inline __attribute__((always_inline)) vec load(const float* p) { return (vec) * (const loose*)p; }
inline __attribute__((always_inline)) void store(float* p, vec x) { *(loose*)p = (loose)x; }

// What to compute: which layers are read out, and whether T_0 = S_0, the NTK and the NNGP are wanted.
struct Job {
    int layers;
    const uint8_t* read;
    bool train_first, ntk;
};

// A row of the zero offset in double, written so that a compiler makes vectors of it. S, T: the box of s and t, one entry a
// column. Adds K and R to sum_k and sum_r. EQUAL: both images are the same, so lam = 1 and S = n.
template <bool EQUAL>
void exact_row(int columns, const double* __restrict S, const double* __restrict T, const double* __restrict d1,
               const double* __restrict d2, size_t inverses, double* __restrict k, double* __restrict r,
               double* __restrict sum_k, double* __restrict sum_r) {
    for (int c = 0; c < columns; c++) {
        const double inverse = d1[inverses + c] * d2[inverses + c], deviation = d1[c] * d2[c];
        double K, R, lam;
        relu_layer<true, true>(EQUAL ? deviation : S[c], T[c], inverse, deviation, K, R, lam);
        k[c] = K, r[c] = R, sum_k[c] += K, sum_r[c] += R;
    }
}

// The zero offset of one pair in double: out[2 h] = sum R, out[2 h + 1] = sum K after layer h.
void zero_offset(const Images& a, long i, const Images& b, long j, const Job& job, double* out) {
    constexpr int LONGEST = MAX_ROWS, stride = LANES + 2;
    const Shape& shape = a.shape;
    const int rows = shape.rows, columns = shape.columns;
    const size_t n = shape.pixels();
    const double *x = a.exact(i), *y = b.exact(j);
    const bool equal = a.equal(i, b, j);
    // s, t: what `box` has yet to sum, with an empty border; across: sums of three along a row
    double s[(LONGEST + 2) * stride] = {}, t[(LONGEST + 2) * stride] = {};
    double across_s[(LONGEST + 2) * stride], across_t[(LONGEST + 2) * stride];
    std::fill_n(across_s, (rows + 2) * stride, 0.0), std::fill_n(across_t, (rows + 2) * stride, 0.0);
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < shape.channels; k++)
            for (int c = 0; c < columns; c++) {
                const size_t p = k * n + r * columns + c;
                s[(r + 1) * stride + c + 1] += x[p] * y[p];
            }
    if (job.train_first) std::copy_n(s, (rows + 2) * stride, t);
    for (int h = 0; h < job.layers; h++) {
        const double *d1 = x + (shape.channels + 2 * h) * n, *d2 = y + (shape.channels + 2 * h) * n;
        for (int p = stride + 1; p < (rows + 1) * stride - 1; p++) {
            across_s[p] = s[p - 1] + s[p] + s[p + 1];
            across_t[p] = t[p - 1] + t[p] + t[p + 1];
        }
        double sum_r[LANES] = {}, sum_k[LANES] = {};
        for (int r = 0; r < rows; r++) {
            const int p = (r + 1) * stride + 1;
            double S[LANES], T[LANES];
            for (int c = 0; c < columns; c++) {
                S[c] = across_s[p - stride + c] + across_s[p + c] + across_s[p + stride + c];
                T[c] = across_t[p - stride + c] + across_t[p + c] + across_t[p + stride + c];
            }
            const size_t q = (size_t)r * columns;
            (equal ? exact_row<true> : exact_row<false>)(columns, S, T, d1 + q, d2 + q, n, s + p, t + p, sum_k, sum_r);
        }
        out[2 * h] = out[2 * h + 1] = 0;
        for (int c = 0; c < columns; c++) out[2 * h] += sum_r[c], out[2 * h + 1] += sum_k[c];
    }
}

struct alignas(64) Plane {
    float s[MAX_ROWS * STRIDE + 2 * GUARD], t[MAX_ROWS * STRIDE + 2 * GUARD];
    Plane() { std::memset(this, 0, sizeof *this); }
    float* S(int row) { return s + GUARD + row * STRIDE; }
    float* T(int row) { return t + GUARD + row * STRIDE; }
};

// Lanes in which a neighbour belongs to the box; add_where(m, x, y) is x + y in them and x in the others.
#if defined(__AVX512F__)
typedef __mmask16 Where;
inline __attribute__((always_inline)) vec add_where(Where m, vec x, vec y) {
    return (vec)_mm512_mask_add_ps((__m512)x, m, (__m512)x, (__m512)y);
}
inline Where where(const bool* lanes) {
    Where m = 0;
    for (int k = 0; k < WIDTH; k++) m |= (Where)lanes[k] << k;
    return m;
}
#else
typedef vec Where;
inline __attribute__((always_inline)) vec add_where(Where m, vec x, vec y) { return x + y * m; }
inline Where where(const bool* lanes) {
    Where m = {};
    for (int k = 0; k < WIDTH; k++) m[k] = lanes[k];
    return m;
}
#endif

// Where the box is cut to the left and right of each lane: at the image's edge, and at the seam, where p' wraps.
struct Cut {
    Where left[VECS], right[VECS];
    Cut(const Shape& shape, int group, bool cyclic) {
        bool l[LANES], r[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            const int w = shape.columns, slot = lane / w, j = lane % w;
            const int d2 = cyclic ? group * shape.packed() + slot : 0;
            const bool used = slot < shape.packed() && d2 < w;
            l[lane] = used && j != 0 && j != w - d2;
            r[lane] = used && j != w - 1 && j != w - 1 - d2;
        }
        for (int v = 0; v < VECS; v++) left[v] = where(l + v * WIDTH), right[v] = where(r + v * WIDTH);
    }
};

// What a layer leaves for its readout: sums over rows, a float a lane.
struct alignas(64) Sums {
    float r[LANES], k[LANES], near[LANES];
};

// Sums of each lane and its neighbours in a row.
inline __attribute__((always_inline)) void across(const float* row, const Cut& cut, vec* out) {
#if defined(__AVX512F__)
    // Neighbours by shuffles: loads that straddle cache lines cost more.
    const __m512i a = (__m512i)load(row), b = (__m512i)load(row + WIDTH);
    out[0] = add_where(cut.left[0], (vec)a, (vec)_mm512_alignr_epi32(a, a, 15));
    out[1] = add_where(cut.left[1], (vec)b, (vec)_mm512_alignr_epi32(b, a, 15));
    out[0] = add_where(cut.right[0], out[0], (vec)_mm512_alignr_epi32(b, a, 1));
    out[1] = add_where(cut.right[1], out[1], (vec)_mm512_alignr_epi32(b, b, 1));
#else
    for (int v = 0; v < VECS; v++) {
        const float* p = row + v * WIDTH;
        out[v] = add_where(cut.right[v], add_where(cut.left[v], load(p), load(p - 1)), load(p + 1));
    }
#endif
}

// Rows begin .. end - 1 of one layer in place: box, ReLU, and the sums where READ. Nothing beyond these rows belongs to
// the box. table1, table2: the images' deviations at these rows, their reciprocals so many floats after; rows of the
// second are `stride2` floats long.
template <bool FIRST, bool NTK, bool READ, bool COUNT>
inline __attribute__((always_inline)) void segment(Plane& plane, const Cut& cut, int begin, int end, const float* table1,
                                                   size_t inverse1, const float* table2, size_t inverse2, size_t stride2,
                                                   vec* sum_r, vec* sum_k, vec* near) {
    vec above_s[VECS] = {}, above_t[VECS] = {}, here_s[VECS], here_t[VECS];
    across(plane.S(begin), cut, here_s);
    if (NTK) across(plane.T(begin), cut, here_t);
    for (int i = begin; i < end; i++, table1 += LANES, table2 += stride2) {
        vec below_s[VECS] = {}, below_t[VECS] = {};
        if (i + 1 < end) {
            across(plane.S(i + 1), cut, below_s);
            if (NTK) across(plane.T(i + 1), cut, below_t);
        }
        for (int v = 0; v < VECS; v++) {
            const float *d1 = table1 + v * WIDTH, *d2 = table2 + v * WIDTH;
            const vec s = here_s[v] + above_s[v] + below_s[v];
            vec t = {}, k, r, lam;
            if (NTK) t = here_t[v] + above_t[v] + below_t[v];
            relu_layer<FIRST, NTK>(s, t, load(d1 + inverse1) * load(d2 + inverse2), load(d1) * load(d2), k, r, lam);
            store(plane.S(i) + v * WIDTH, k);
            if (NTK) store(plane.T(i) + v * WIDTH, r);
            if (READ) sum_r[v] += r, sum_k[v] += k;
            if (COUNT) near[v] += lam > 1.f - NEAR_ONE ? vec{} + 1.f : vec{};
            above_s[v] = here_s[v], here_s[v] = below_s[v];
            if (NTK) above_t[v] = here_t[v], here_t[v] = below_t[v];
        }
    }
}

// One layer of the plane of offset (d1, .). Rows from rows - d1 on meet the second image's first rows: the box is cut at
// that seam, which leaves two segments. Not inlined: what surrounds a layer then cannot change how the compiler contracts
// its multiply-adds, and a value has the same bits whatever is read out beside it.
template <bool FIRST, bool NTK, bool READ, bool COUNT>
__attribute__((noinline)) void layer(Plane& plane, const Cut& shared, int rows, int d1, const float* table1, const float* table2, size_t stride2,
           Sums& sums) {
    const Cut cut = shared;  // a copy that no store can change stays in registers
    const int seam = rows - d1;
    const size_t inverse1 = (size_t)rows * LANES, inverse2 = (size_t)rows * stride2;
    vec sum_r[VECS] = {}, sum_k[VECS] = {}, near[VECS] = {};
    segment<FIRST, NTK, READ, COUNT>(plane, cut, 0, seam, table1, inverse1, table2 + d1 * stride2, inverse2, stride2,
                                     sum_r, sum_k, near);
    if (d1)
        segment<FIRST, NTK, READ, COUNT>(plane, cut, seam, rows, table1 + (size_t)seam * LANES, inverse1, table2, inverse2,
                                         stride2, sum_r, sum_k, near);
    for (int v = 0; v < VECS; v++) {
        if (READ) store(sums.r + v * WIDTH, sum_r[v]), store(sums.k + v * WIDTH, sum_k[v]);
        if (COUNT) store(sums.near + v * WIDTH, near[v]);
    }
}

template <bool NTK, bool COUNT>
void any_layer(bool first, bool read, Plane& plane, const Cut& cut, int rows, int d1, const float* table1,
               const float* table2, size_t stride2, Sums& sums) {
    if (first && read) layer<true, NTK, true, COUNT>(plane, cut, rows, d1, table1, table2, stride2, sums);
    else if (first) layer<true, NTK, false, COUNT>(plane, cut, rows, d1, table1, table2, stride2, sums);
    else if (read) layer<false, NTK, true, COUNT>(plane, cut, rows, d1, table1, table2, stride2, sums);
    else layer<false, NTK, false, COUNT>(plane, cut, rows, d1, table1, table2, stride2, sums);
}

// All layers of one plane. x1, x2: an image block each, its channels, then its tables. end(h, sums) after each layer.
template <bool COUNT, class End>
void run_plane(Plane& plane, const Cut& cut, const Shape& shape, int d1, const float* x1, const float* x2,
               size_t stride2, const Job& job, End end) {
    const size_t block1 = shape.row_block(), block2 = (size_t)shape.rows * stride2;
    for (int i = 0; i < shape.rows; i++) {
        const int i2 = i + d1 < shape.rows ? i + d1 : i + d1 - shape.rows;
        for (int v = 0; v < VECS; v++) {
            vec s = {};
            for (int c = 0; c < shape.channels; c++)
                s += load(x1 + c * block1 + i * LANES + v * WIDTH) * load(x2 + c * block2 + i2 * stride2 + v * WIDTH);
            store(plane.S(i) + v * WIDTH, s);
            store(plane.T(i) + v * WIDTH, job.train_first ? s : vec{});
        }
    }
    Sums sums;
    for (int h = 0; h < job.layers; h++) {
        const float* table1 = x1 + (shape.channels + 2 * h) * block1;
        const float* table2 = x2 + (shape.channels + 2 * h) * block2;
        if (job.ntk) any_layer<true, COUNT>(h == 0, job.read[h], plane, cut, shape.rows, d1, table1, table2, stride2, sums);
        else any_layer<false, COUNT>(h == 0, job.read[h], plane, cut, shape.rows, d1, table1, table2, stride2, sums);
        end(h, sums);
    }
}

// The second image of a pair for every offset d2: rows doubled where one plane fills the lanes, else for each group of
// d2 the image's row rotated by each of them side by side.
void rotate(const float* image, const Shape& shape, float* out) {
    const int w = shape.columns, row_floats = shape.rotated();
    const long rows = (long)(shape.channels + 2 * shape.layers) * shape.rows;
    for (long r = 0; r < rows; r++) {
        const float* from = image + r * LANES;
        float* to = out + r * row_floats;
        if (shape.packed() == 1) {
            for (int k = 0; k < row_floats; k++) to[k] = from[k % w];
            continue;
        }
        for (int lane = 0; lane < row_floats; lane++) {
            const int slot = lane % LANES / w, j = lane % LANES % w, d2 = lane / LANES * shape.packed() + slot;
            to[lane] = slot < shape.packed() && d2 < w ? from[(j + d2) % w] : 0.f;
        }
    }
}

// Global average pooling, one pair: out[2 h] = sum R, out[2 h + 1] = sum K over all pixel pairs, in double.
void pooled_pair(Plane& plane, const std::vector<Cut>& cuts, const float* x1, const float* x2, const Shape& shape,
                 const Job& job, double* out) {
    std::vector<double> lanes(2 * job.layers * LANES);
    for (int d1 = 0; d1 < shape.rows; d1++)
        for (int group = 0; group < shape.groups(); group++) {
            const int start = shape.packed() == 1 ? group : group * LANES;
            // The plane of offset (0, 0) is computed apart, in double.
            const int skip = d1 == 0 && group == 0 ? shape.columns : 0;
            run_plane<false>(plane, cuts[group], shape, d1, x1, x2 + start, shape.rotated(), job, [&](int h, Sums& sums) {
                if (!job.read[h]) return;
                double* to = lanes.data() + 2 * h * LANES;
                for (int lane = skip; lane < LANES; lane++) to[lane] += sums.r[lane], to[LANES + lane] += sums.k[lane];
            });
        }
    for (int slot = 0; slot < 2 * job.layers; slot++) {
        double sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += lanes[slot * LANES + lane];
        out[slot] += sum;
    }
}

}  // namespace

// Both functions: x1 (n1, channels, rows, columns), x2 (n2, ...) or x1 itself where symmetric, which computes pairs with
// j <= i only; read (layers): which layers are read out; out (2, reads, n1, n2): sums of R, then of K, over pixels.
extern "C" {

void ntk_pooled(const float* x1, long n1, const float* x2, long n2, int symmetric, int channels, int rows, int columns,
                int layers, const uint8_t* read, int train_first, int ntk, int threads, double* out) {
    const Shape shape{channels, rows, columns, layers};
    const Job job{layers, read, train_first != 0, ntk != 0};
    const Images first(x1, n1, shape, 1, threads);
    std::unique_ptr<Images> other(symmetric ? nullptr : new Images(x2, n2, shape, 1, threads));
    const Images& second = symmetric ? first : *other;
    std::vector<Cut> cuts;
    for (int group = 0; group < shape.groups(); group++) cuts.emplace_back(shape, group, true);
    long reads = std::count(read, read + layers, 1);
    // A unit of work is one second image against a run of first ones, which shares its rotation.
    const long run = 8, runs = (n1 + run - 1) / run;
    parallel(n2 * runs, threads, [&](long unit) {
        const long j = unit / runs, begin = unit % runs * run;
        const long from = symmetric ? std::max(begin, j) : begin, to = std::min(begin + run, n1);
        if (from >= to) return;
        auto plane = std::make_unique<Plane>();
        std::vector<float> rotated((size_t)(channels + 2 * layers) * rows * shape.rotated() + LANES);
        std::vector<double> sums(2 * layers);
        rotate(second.lanes(j), shape, rotated.data());
        for (long i = from; i < to; i++) {
            zero_offset(first, i, second, j, job, sums.data());
            pooled_pair(*plane, cuts, first.lanes(i), rotated.data(), shape, job, sums.data());
            const double scale = first.scale(i) * second.scale(j);
            for (long h = 0, slot = 0; h < layers; h++)
                if (read[h]) {
                    out[(slot * n1 + i) * n2 + j] = sums[2 * h] * scale;
                    out[((reads + slot++) * n1 + i) * n2 + j] = sums[2 * h + 1] * scale;
                }
        }
    });
}

// Returns how many pairs were nearly equal and so computed in double.
long ntk_vanilla(const float* x1, long n1, const float* x2, long n2, int symmetric, int channels, int rows, int columns,
                 int layers, const uint8_t* read, int train_first, int ntk, int threads, double* out) {
    const Shape shape{channels, rows, columns, layers};
    const Job job{layers, read, train_first != 0, ntk != 0};
    const int packed = shape.packed();
    const Images first(x1, n1, shape, 1, threads);
    std::unique_ptr<Images> other;
    if (!symmetric || packed > 1) other.reset(new Images(x2, n2, shape, packed, threads));
    const Images& second = other ? *other : first;
    const Cut cut(shape, 0, false);
    const long reads = std::count(read, read + layers, 1);
    std::atomic<long> repeated{0};
    // A unit of work is a few first images, whose tables stay in cache, against a longer run of second ones.
    const long side = std::max<long>(1, CACHE_BYTES / (shape.image_floats() * (long)sizeof(float))), run = 4 * side;
    const long across = (second.blocks() + run - 1) / run, down = (n1 + side - 1) / side;
    parallel(across * down, threads, [&](long unit) {
        const long row0 = unit / across * side, block0 = unit % across * run;
        auto plane = std::make_unique<Plane>();
        std::vector<double> sums(2 * layers * LANES), near(layers * LANES), exact(2 * layers);
        for (long block = block0; block < std::min(block0 + run, second.blocks()); block++)
            for (long i = row0; i < std::min(row0 + side, n1); i++) {
                if (symmetric && block * packed > i) continue;
                run_plane<true>(*plane, cut, shape, 0, first.lanes(i), second.lanes(block), LANES, job,
                                [&](int h, Sums& layer_sums) {
                                    double* so_far = near.data() + h * LANES;
                                    for (int lane = 0; lane < LANES; lane++)
                                        so_far[lane] = layer_sums.near[lane] + (h ? so_far[lane - LANES] : 0.0);
                                    if (!job.read[h]) return;
                                    double* to = sums.data() + 2 * h * LANES;
                                    for (int lane = 0; lane < LANES; lane++)
                                        to[lane] = layer_sums.r[lane], to[LANES + lane] = layer_sums.k[lane];
                                });
                for (int slot = 0; slot < packed; slot++) {
                    const long j = block * packed + slot;
                    if (j >= n2 || (symmetric && j > i)) break;
                    const double scale = first.scale(i) * second.scale(j);
                    bool again = first.equal(i, second, j), computed = false;
                    for (long h = 0, place = 0; h < layers; h++)
                        if (read[h]) {
                            // From the layers up to this one alone: a depth's value does not depend on those beside it.
                            double count = 0, total[2] = {0, 0};
                            for (int c = 0; c < columns; c++) count += near[h * LANES + slot * columns + c];
                            again = again || count * NEAR_ONE_SHARE > shape.pixels();
                            if (again && !computed) zero_offset(first, i, second, j, job, exact.data()), computed = true;
                            for (int which = 0; which < 2; which++)
                                for (int c = 0; c < columns; c++)
                                    total[which] += sums[(2 * h + which) * LANES + slot * columns + c];
                            if (again) total[0] = exact[2 * h], total[1] = exact[2 * h + 1];
                            out[(place * n1 + i) * n2 + j] = total[0] * scale;
                            out[((reads + place++) * n1 + i) * n2 + j] = total[1] * scale;
                        }
                    repeated += computed;
                }
            }
    });
    return repeated;
}

// Multiply-adds done by one thread that does nothing else; timing a call gives the limit that speed is measured against.
// Each chain has a name of its own: a compiler keeps an array of them in memory and measures its loads instead.
double ntk_multiply_adds(long rounds) {
    constexpr int chains = 10;  // enough to hide the latency of two units
    const vec a = vec{} + 0.999f, b = vec{} + 0.001f;
    vec p = b, q = b, r = b, s = b, t = b, u = b, v = b, w = b, x = b, y = b;
    for (long round = 0; round < rounds; round++) {
        p = p * a + b, q = q * a + b, r = r * a + b, s = s * a + b, t = t * a + b;
        u = u * a + b, v = v * a + b, w = w * a + b, x = x * a + b, y = y * a + b;
        __asm__ volatile("" : NTK_REGISTER(p), NTK_REGISTER(q), NTK_REGISTER(r), NTK_REGISTER(s), NTK_REGISTER(t));
        __asm__ volatile("" : NTK_REGISTER(u), NTK_REGISTER(v), NTK_REGISTER(w), NTK_REGISTER(x), NTK_REGISTER(y));
    }
    return (double)rounds * chains * WIDTH;
}
}
