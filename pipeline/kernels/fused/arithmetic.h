// One ReLU layer of the CNTK recursion at one pixel pair, for a lane of any kind: a float, a double, or a vector of
// floats. Shared by the CPU loops and the GPU kernels; it includes nothing, so that NVRTC can compile it.
#pragma once

#ifdef __CUDACC__
#define NTK_INLINE __device__ __forceinline__
#define NTK_CONST __device__ static constexpr
#else
#define NTK_INLINE static inline __attribute__((always_inline))
#define NTK_CONST static constexpr
#endif

// The scalar of a lane, its rounding unit, and root(): specialised for vectors where those are defined.
template <class L> struct Scalar { using type = L; };

template <class F> struct Arccos;

// arccos(a) / (9 pi) = sqrt(1 - a) P(a) on [0, 1]: minimax in the error of the product, of degree 6 with coefficients
// rounded to float one after another. The product's error is at most 3.7e-8 of 1/9, under float's rounding unit.
template <> struct Arccos<float> {
    NTK_CONST float epsilon = 1.1920929e-7f;
    template <class L> NTK_INLINE L polynomial(L a) {
        L p = a * 9.14853808353655e-05f - 0.0004221884591970593f;
        p = p * a + 0.0009796139784157276f;
        p = p * a - 0.001738978666253388f;
        p = p * a + 0.0031417219433933496f;
        p = p * a - 0.007589592132717371f;
        return p * a + 0.0555555522441864f;
    }
};

// The same form, interpolated at Chebyshev nodes: absolute error 7e-17.
template <> struct Arccos<double> {
    NTK_CONST double epsilon = 2.220446049250313e-16;
    template <class L> NTK_INLINE L polynomial(L a) {
        L p = a * 0.000000429062131840644668 - 0.00000413726746602609073;
        p = p * a + 0.0000188662988851713179;
        p = p * a - 0.0000546836670202592348;
        p = p * a + 0.000114947111707347549;
        p = p * a - 0.000191139156311467486;
        p = p * a + 0.000270269767247476284;
        p = p * a - 0.000346947024998306589;
        p = p * a + 0.000427350731966173887;
        p = p * a - 0.00052536302092242013;
        p = p * a + 0.00066020128820854746;
        p = p * a - 0.00086204164256964758;
        p = p * a + 0.0011912299097254186;
        p = p * a - 0.00179642823978614383;
        p = p * a + 0.00314945076509326842;
        p = p * a - 0.00758998735372894737;
        return p * a + 0.0555555555555555114;
    }
};

// K = (c_sigma / q^2) n (lam (pi - arccos lam) + sqrt(1 - lam^2)) / (2 pi) and R = Kdot T + K, with
// Kdot = (c_sigma / q^2) (pi - arccos lam) / (2 pi), c_sigma = 2 and q^2 = 9.
//
// s: the inner product S[p, p'].  t: T[p, p'], read only where NTK.  inverse: 1 / n, 0 where n = 0.  deviation: n.
// FIRST: the first layer, the only one in which lam may be negative.  Within 4 rounding units of 1 (or -1) lam counts
// as exactly that: arccos would turn a rounding e there into sqrt(2 e).
template <bool FIRST, bool NTK, class L>
NTK_INLINE void relu_layer(L s, L t, L inverse, L deviation, L& k, L& r, L& lam) {
    using F = typename Scalar<L>::type;
    constexpr F ninth = F(1) / F(9), per_root = F(1.0 / (9.0 * 3.14159265358979323846));
    constexpr F edge = F(1) - 4 * Arccos<F>::epsilon;
    lam = s * inverse;
    L a = lam;
    if constexpr (FIRST) a = lam < F(0) ? -lam : lam;
    const L u = a < edge ? F(1) - a : L{};  // exact for a >= 1/2, where it matters
    const L arc = root(u) * Arccos<F>::polynomial(a);
    L kdot = ninth - arc;
    if constexpr (FIRST) kdot = lam < F(0) ? arc : kdot;
    k = (lam * kdot + root(u * a + u) * per_root) * deviation;
    if constexpr (NTK)
        r = t * kdot + k;
    else
        r = k;
}
