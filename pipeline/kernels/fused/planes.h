// Planes of pixel pairs as vectors of floats, and one layer of the recursion over them, in place.
//
// A row of a plane is LANES floats; images narrower than that put several planes (global average pooling) or several pairs
// (vanilla) side by side in it, and wider ones, vanilla alone, take longer rows. `box` never mixes offsets, and planes are
// cyclic: pixel p of the first image meets pixel (p + d) mod (H, W) of the second, and the box is cut where that wraps.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static inline float root(float x) { return __builtin_sqrtf(x); }

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int ints __attribute__((vector_size(4 * WIDTH)));
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

#include "exact.h"
template <> struct Scalar<vec> { using type = float; };
#if defined(NTK_DEAR_ROOTS)
template <> struct DearRoots<vec> { static constexpr bool value = true; };
#endif

namespace {

constexpr int VECS = LANES / WIDTH;
constexpr int GUARD = WIDTH;             // zeros on either side of a plane's row
constexpr int STRIDE = LANES + GUARD;    // the right guard of a row is the left guard of the next
constexpr float NEAR_ONE = 1e-3f;        // correlations above 1 - NEAR_ONE are where float32 loses arccos
constexpr int SHORT_SUM = 64;            // so many floats are added up in float before they go to a sum in double

inline __attribute__((always_inline)) vec load(const float* p) { return (vec) * (const loose*)p; }
inline __attribute__((always_inline)) void store(float* p, vec x) { *(loose*)p = (loose)x; }

// Every other lane of two vectors that follow one another, from lane FIRST on.
template <int FIRST> inline __attribute__((always_inline)) vec every_other(vec a, vec b) {
#if !defined(__clang__) && __GNUC__ < 12
    vec out;
    for (int k = 0; k < WIDTH; k++) out[k] = 2 * k + FIRST < WIDTH ? a[(2 * k + FIRST) % WIDTH] : b[(2 * k + FIRST) % WIDTH];
    return out;
#elif defined(__AVX512F__)
    constexpr int f = FIRST;
    return __builtin_shufflevector(a, b, f, f + 2, f + 4, f + 6, f + 8, f + 10, f + 12, f + 14, f + 16, f + 18, f + 20, f + 22, f + 24,
                                   f + 26, f + 28, f + 30);
#elif defined(__AVX__)
    constexpr int f = FIRST;
    return __builtin_shufflevector(a, b, f, f + 2, f + 4, f + 6, f + 8, f + 10, f + 12, f + 14);
#else
    return __builtin_shufflevector(a, b, FIRST, FIRST + 2, FIRST + 4, FIRST + 6);
#endif
}

// Where a plane's S and T lie: their first rows, and the floats from a row to the next.
struct Plane {
    float *s, *t;
    int stride;
    float* S(int row) const { return s + row * stride; }
    float* T(int row) const { return t + row * stride; }
};

// The memory of so many planes of a shape: zero, also the row below the last.
class Planes {
public:
    Planes(const Shape& shape, long count)
        : stride_(shape.row() + GUARD), half_((size_t)(shape.rows + 1) * stride_ + GUARD), floats_(2 * half_ * count + 16, 0.f) {
        const size_t past = (size_t)floats_.data() / sizeof(float) % 16;
        first_ = floats_.data() + (16 - past) % 16 + GUARD;
    }
    Plane operator[](long k) { return {first_ + 2 * k * half_, first_ + (2 * k + 1) * half_, stride_}; }
    static size_t bytes(const Shape& shape) { return sizeof(float) * 2 * (shape.rows + 1) * (shape.row() + GUARD); }

private:
    const int stride_;
    const size_t half_;
    std::vector<float> floats_;
    float* first_;
};

// What a layer leaves for its readout: sums over rows in each lane, and how many entries were near 1 so far.
struct alignas(64) Sums {
    float r[LANES], k[LANES];
    int near[LANES];
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

// Sums of each lane and its neighbours in a row. WHOLE: nothing is cut, and what lies beside the row is zero.
template <bool WHOLE>
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
        out[v] = WHOLE ? load(p) + load(p - 1) + load(p + 1)
                       : add_where(cut.right[v], add_where(cut.left[v], load(p), load(p - 1)), load(p + 1));
    }
#endif
}

inline __attribute__((always_inline)) ints count_near(ints so_far, vec lam) {
#if defined(__AVX512F__)
    const __mmask16 near = _mm512_cmp_ps_mask((__m512)lam, (__m512)(vec{} + (1.f - NEAR_ONE)), _CMP_GT_OQ);
    return (ints)_mm512_mask_sub_epi32((__m512i)so_far, near, (__m512i)so_far, _mm512_set1_epi32(-1));
#else
    return so_far - (ints)(lam > 1.f - NEAR_ONE);
#endif
}

// Sums of one vector of a row over some rows.
struct Running {
    vec r = {}, k = {};
    ints near = {};
};

// The ReLU of one vector of s and t, in place. table1, table2: the images' deviations there, their reciprocals so many
// floats after.
template <bool FIRST, bool NTK, bool READ, bool COUNT>
inline __attribute__((always_inline)) void entries(vec s, vec t, const float* table1, size_t inverse1, const float* table2,
                                                   size_t inverse2, float* to_s, float* to_t, Running& sums) {
    vec k, r, lam;
    relu_layer<FIRST, NTK>(s, t, load(table1 + inverse1) * load(table2 + inverse2), load(table1) * load(table2), k, r, lam);
    store(to_s, k);
    if (NTK) store(to_t, r);
    if (READ) sums.r += r, sums.k += k;
    if (COUNT) sums.near = count_near(sums.near, lam);
}

// Rows begin .. end - 1 of one layer: box, ReLU, and the sums where READ. Nothing beyond these rows belongs to the box.
// Rows of the second image's table are `stride2` floats long.
template <bool WHOLE, bool FIRST, bool NTK, bool READ, bool COUNT>
inline __attribute__((always_inline)) void segment(const Plane& plane, const Cut& cut, int begin, int end,
                                                   const float* table1, size_t inverse1, const float* table2,
                                                   size_t inverse2, size_t stride2, Running* sums) {
    vec above_s[VECS] = {}, above_t[VECS] = {}, here_s[VECS], here_t[VECS] = {};
    float *s = plane.s + begin * STRIDE, *t = plane.t + begin * STRIDE;
    across<WHOLE>(s, cut, here_s);
    if (NTK) across<WHOLE>(t, cut, here_t);
    for (int i = begin; i < end; i++, s += STRIDE, t += STRIDE, table1 += LANES, table2 += stride2) {
        vec below_s[VECS] = {}, below_t[VECS] = {};
        if (i + 1 < end) {
            across<WHOLE>(s + STRIDE, cut, below_s);
            if (NTK) across<WHOLE>(t + STRIDE, cut, below_t);
        }
        for (int v = 0; v < VECS; v++) {
            const int at = v * WIDTH;
            entries<FIRST, NTK, READ, COUNT>(here_s[v] + above_s[v] + below_s[v], here_t[v] + above_t[v] + below_t[v],
                                             table1 + at, inverse1, table2 + at, inverse2, s + at, t + at, sums[v]);
            above_s[v] = here_s[v], here_s[v] = below_s[v];
            if (NTK) above_t[v] = here_t[v], here_t[v] = below_t[v];
        }
    }
}

// One layer of the plane of offset (d1, .). Rows from rows - d1 on meet the second image's first rows: the box is cut at
// that seam, which leaves two segments. Not inlined: what surrounds a layer then cannot change how the compiler contracts
// its multiply-adds, and a value has the same bits whatever is read out beside it.
template <bool WHOLE, bool FIRST, bool NTK, bool READ, bool COUNT>
__attribute__((noinline)) void layer(const Plane& plane, const Cut& shared, int rows, int d1, const float* table1,
                                     const float* table2, size_t stride2, Sums& sums) {
    const Cut cut = shared;  // a copy that no store can change stays in registers
    const int seam = rows - d1;
    const size_t inverse1 = (size_t)rows * LANES, inverse2 = (size_t)rows * stride2;
    Running running[VECS];
    segment<WHOLE, FIRST, NTK, READ, COUNT>(plane, cut, 0, seam, table1, inverse1, table2 + d1 * stride2, inverse2, stride2,
                                            running);
    if (d1)
        segment<WHOLE, FIRST, NTK, READ, COUNT>(plane, cut, seam, rows, table1 + (size_t)seam * LANES, inverse1, table2,
                                                inverse2, stride2, running);
    for (int v = 0; v < VECS; v++) {
        const int at = v * WIDTH;
        if (READ) store(sums.r + at, running[v].r), store(sums.k + at, running[v].k);
        if (COUNT) *(ints*)(sums.near + at) += running[v].near;
    }
}

using Layer = void(const Plane&, const Cut&, int rows, int d1, const float* table1, const float* table2, size_t stride2, Sums&);

template <bool WHOLE, bool COUNT> Layer* any_layer(bool first, bool ntk, bool read) {
    static constexpr Layer* layers[] = {
        layer<WHOLE, false, false, false, COUNT>, layer<WHOLE, false, false, true, COUNT>,
        layer<WHOLE, false, true, false, COUNT>,  layer<WHOLE, false, true, true, COUNT>,
        layer<WHOLE, true, false, false, COUNT>,  layer<WHOLE, true, false, true, COUNT>,
        layer<WHOLE, true, true, false, COUNT>,   layer<WHOLE, true, true, true, COUNT>};
    return layers[4 * first + 2 * ntk + read];
}

// Three rows of sums across, which change places from row to row.
class ThreeRows {
public:
    explicit ThreeRows(int row) : floats_(3 * row, 0.f), above_(floats_.data()), here_(above_ + row), below_(here_ + row) {}
    // What the sums across of a row of pixels are, `keep` 1 in those lanes that hold pixels.
    static vec across(const float* row, vec keep) { return (load(row) + load(row - 1) + load(row + 1)) * keep; }
    void begin(int at, vec across) { store(here_ + at, across); }
    vec box(int at, vec below) {
        store(below_ + at, below);
        return load(here_ + at) + load(above_ + at) + below;
    }
    void next() {
        float* free = above_;
        above_ = here_, here_ = below_, below_ = free;
    }

private:
    std::vector<float> floats_;
    float *above_, *here_, *below_;
};

// Sums over all entries of a wide plane, and how many were near 1 so far.
struct Totals {
    double r = 0, k = 0;
    long near = 0;
    void add(Running& running) {
        for (int lane = 0; lane < WIDTH; lane++)
            r += running.r[lane], k += running.k[lane], near += running.near[lane];
        running = {};
    }
};

// One layer of the zero offset of wide images.
template <bool FIRST, bool NTK, bool READ>
__attribute__((noinline)) void wide_layer(const Plane& plane, const Shape& shape, const float* table1, const float* table2,
                                          Totals& sums) {
    const int row = shape.row(), used = (shape.columns + WIDTH - 1) / WIDTH * WIDTH;
    const size_t inverse = shape.row_block();
    vec last = {};
    for (int k = 0; k < WIDTH; k++) last[k] = used - WIDTH + k < shape.columns;
    ThreeRows s(row), t(row);
    Running running;
    sums.r = sums.k = 0;
    int terms = 0;
    for (int at = 0; at < used; at += WIDTH) {
        const vec keep = at + WIDTH < used ? vec{} + 1.f : last;
        s.begin(at, s.across(plane.s + at, keep));
        if (NTK) t.begin(at, t.across(plane.t + at, keep));
    }
    for (int i = 0; i < shape.rows; i++, table1 += row, table2 += row) {
        const vec inner = i + 1 < shape.rows ? vec{} + 1.f : vec{};
        float *to_s = plane.S(i), *to_t = plane.T(i);
        for (int at = 0; at < used; at += WIDTH) {
            const vec keep = at + WIDTH < used ? inner : inner * last;
            const vec box_s = s.box(at, s.across(to_s + plane.stride + at, keep));
            const vec box_t = NTK ? t.box(at, t.across(to_t + plane.stride + at, keep)) : vec{};
            entries<FIRST, NTK, READ, true>(box_s, box_t, table1 + at, inverse, table2 + at, inverse, to_s + at, to_t + at,
                                            running);
        }
        s.next(), t.next();
        terms += used / WIDTH;
        if (terms >= SHORT_SUM || i + 1 == shape.rows) sums.add(running), terms = 0;
    }
}

using WideLayer = void(const Plane&, const Shape&, const float* table1, const float* table2, Totals&);

inline WideLayer* any_wide_layer(bool first, bool ntk, bool read) {
    static constexpr WideLayer* layers[] = {
        wide_layer<false, false, false>, wide_layer<false, false, true>, wide_layer<false, true, false>,
        wide_layer<false, true, true>,   wide_layer<true, false, false>, wide_layer<true, false, true>,
        wide_layer<true, true, false>,   wide_layer<true, true, true>};
    return layers[4 * first + 2 * ntk + read];
}

// S_0, the product of two images pixel by pixel, and T_0. The second image's rows lie `stride2` floats apart and begin
// with its row d1.
inline void start_plane(const Plane& plane, const Shape& shape, int d1, const float* x1, const float* x2, size_t stride2,
                        bool train_first) {
    const size_t block1 = shape.row_block(), block2 = (size_t)shape.rows * stride2;
    for (int i = 0; i < shape.rows; i++) {
        const int i2 = i + d1 < shape.rows ? i + d1 : i + d1 - shape.rows;
        const float *row1 = x1 + i * shape.row(), *row2 = x2 + i2 * stride2;
        float *to_s = plane.S(i), *to_t = plane.T(i);
        for (int at = 0; at < shape.row(); at += WIDTH) {
            const float *a = row1 + at, *b = row2 + at;
            vec s = {};
            for (int c = 0; c < shape.channels; c++, a += block1, b += block2) s += load(a) * load(b);
            store(to_s + at, s);
            store(to_t + at, train_first ? s : vec{});
        }
    }
}

}  // namespace
