// One ReLU layer of the CNTK recursion at one pixel pair, for a lane of any kind: a float, a double, or a vector of
// floats. Shared by the CPU loops and the GPU kernels; it includes nothing, so that NVRTC can compile it. root(), the
// square root of a float and a double, is there before it is included.
#pragma once

#ifdef __CUDACC__
#define NTK_INLINE static __device__ __forceinline__
#else
#define NTK_INLINE static inline __attribute__((always_inline))
#endif

// The scalar of a lane, its rounding unit, and root(): specialised for vectors where those are defined.
template <class L> struct Scalar { using type = L; };
// Whether a lane's square roots cost more than a polynomial.
template <class L> struct DearRoots { static constexpr bool value = false; };

template <class F> struct Arccos;

// arccos(a) = sqrt(1 - a) P(a) on [0, 1]: minimax in the error of the product, of degree 6 with coefficients rounded to
// float one after another. The product's error is at most 2.9e-8 of pi, half of float's rounding unit.
template <> struct Arccos<float> {
    static constexpr float epsilon = 1.1920929e-7f;
    template <class L> NTK_INLINE L polynomial(L a) {
        L p = a * 0.002619802719f - 0.01202753279f;
        p = p * a + 0.02779036947f;
        p = p * a - 0.04921224713f;
        p = p * a + 0.08883970976f;
        p = p * a - 0.2145915031f;
        return p * a + 1.570796251f;
    }
    // (sqrt(1 - a^2) - a arccos(a)) / (1 - a)^(3/2) on [0, 1], times (9 pi)^2: minimax in the error of the numerator, at
    // most 1.2e-8 of pi.
    template <class L> NTK_INLINE L excess(L a) {
        L p = 2.35701966f - a * 0.561651945f;
        p = p * a - 5.91672611f;
        p = p * a + 14.9919281f;
        p = p * a - 56.5949478f;
        return p * a + 799.437927f;
    }
};

// The same form, of degree 16, interpolated at Chebyshev nodes. The product's error is at most 8.1e-12, near 0.952.
template <> struct Arccos<double> {
    static constexpr double epsilon = 2.220446049250313e-16;
    template <class L> NTK_INLINE L polynomial(L a) {
        L p = a * 0.0000121314459719173014 - 0.000116978481694832635;
        p = p * a + 0.000533432033802751666;
        p = p * a - 0.00154614425923977184;
        p = p * a + 0.00325005301522051538;
        p = p * a - 0.00540433232353311674;
        p = p * a + 0.00764169763744885327;
        p = p * a - 0.00980969602427562894;
        p = p * a + 0.0120830572804603743;
        p = p * a - 0.0148542894629785433;
        p = p * a + 0.0186667516523384144;
        p = p * a - 0.0243736532224675489;
        p = p * a + 0.0336812321981682691;
        p = p * a - 0.0507928118473205367;
        p = p * a + 0.0890486224781378913;
        p = p * a - 0.214601836601828668;
        return p * a + 1.57079632679489537;
    }
};

// a b, rounded before anything is added to it: a value keeps its bits whatever is computed beside it.
template <class L> NTK_INLINE L rounded_product(L a, L b) { return a * b; }
#ifdef __CUDA_ARCH__
NTK_INLINE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
NTK_INLINE double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#endif

// K = (c_sigma / q^2) n (lam (pi - arccos lam) + sqrt(1 - lam^2)) / (2 pi) and R = Kdot T + K, with
// Kdot = (c_sigma / q^2) (pi - arccos lam) / (2 pi), c_sigma = 2 and q^2 = 9.
//
// s: the inner product S[p, p'].  t: T[p, p'], read only where NTK.  inverse: 1 / n, 0 where n = 0.  deviation: n.
// FIRST: the first layer, the only one in which lam may be negative.  Within 4 rounding units of 1 (or -1) lam counts
// as exactly that: arccos would turn a rounding e there into sqrt(2 e).
template <bool FIRST, bool NTK, class L>
NTK_INLINE void relu_layer(L s, L t, L inverse, L deviation, L& k, L& r, L& lam) {
    using F = typename Scalar<L>::type;
    constexpr F per_pi = F(1.0 / (9.0 * 3.14159265358979323846)), unit = per_pi * per_pi;
    constexpr F ninth = F(1) / F(9), edge = F(1) - 4 * Arccos<F>::epsilon;
    lam = s * inverse;
    L a = lam;
    if constexpr (FIRST) a = lam < F(0) ? -lam : lam;
    const L u = a < edge ? unit - a * unit : L{};  // under the roots, 1 / (9 pi) costs nothing
    const L first_root = root(u), arc = first_root * Arccos<F>::polynomial(a);
    L kdot = ninth - arc, mean;  // mean: K by n
    if constexpr (FIRST) kdot = lam < F(0) ? arc : kdot;
    if constexpr (DearRoots<L>::value) {
        L line = lam * ninth;
        if constexpr (FIRST) line = lam < F(0) ? L{} : line;
        mean = first_root * (u * Arccos<F>::excess(a)) + line;
    } else {
        mean = lam * kdot + root(u * a + u);
    }
    k = rounded_product(mean, deviation);
    if constexpr (NTK)
        r = t * kdot + k;
    else
        r = k;
}
