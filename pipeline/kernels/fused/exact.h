// The zero offset of a pair, which is all of a vanilla kernel, in double.
#pragma once
#include "images.h"

static inline double root(double x) { return __builtin_sqrt(x); }

#include "arithmetic.h"
#include "windows.h"

namespace {

constexpr int EVERY_PAIR = -1;  // in place of a window: the sum over all pixel pairs there are

// What to compute: which layers are read out, how, and whether T_0 = S_0, the NTK and the NNGP are wanted.
struct Job {
    int layers;
    const uint8_t* read;
    bool train_first, ntk;
    int poolings;
    const int* windows;  // for each pooling c of its window, or EVERY_PAIR

    int slots() const { return poolings * layers; }  // of sums of R and of K: for each pooling, and of it for each layer
};

// A row of the zero offset, written so that a compiler makes vectors of it. S, T: the box of s and t, one entry a column.
// Adds K and R to sum_k and sum_r. EQUAL: both images are the same, so lam = 1 and S = n.
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

// A plane of pixel pairs in double, and one layer over it, in place.
struct ExactPlane {
    explicit ExactPlane(const Shape& shape)
        : stride(shape.columns + 2), s(size(shape)), t(size(shape)), across_s(size(shape)), across_t(size(shape)),
          S(shape.columns), T(shape.columns), sum_r(shape.columns), sum_k(shape.columns) {}

    void clear() { std::fill(s.begin(), s.end(), 0.0), std::fill(t.begin(), t.end(), 0.0); }
    size_t at(int row, int column) const { return (row + 1) * stride + column + 1; }

    // d1, d2: the images' deviations at the plane's first entry, rows `row` and their reciprocals `inverses` numbers apart
    void layer(bool equal, int rows, int columns, const double* d1, const double* d2, size_t row, size_t inverses) {
        for (size_t p = stride + 1; p < (rows + 1) * stride - 1; p++) {
            across_s[p] = s[p - 1] + s[p] + s[p + 1];
            across_t[p] = t[p - 1] + t[p] + t[p + 1];
        }
        // What lies below these rows belongs to a taller plane before.
        std::fill(across_s.begin() + (rows + 1) * stride, across_s.end(), 0.0);
        std::fill(across_t.begin() + (rows + 1) * stride, across_t.end(), 0.0);
        std::fill(sum_r.begin(), sum_r.end(), 0.0), std::fill(sum_k.begin(), sum_k.end(), 0.0);
        for (int r = 0; r < rows; r++) {
            const size_t p = at(r, 0), q = r * row;
            for (int c = 0; c < columns; c++) {
                S[c] = across_s[p - stride + c] + across_s[p + c] + across_s[p + stride + c];
                T[c] = across_t[p - stride + c] + across_t[p + c] + across_t[p + stride + c];
            }
            (equal ? exact_row<true> : exact_row<false>)(columns, S.data(), T.data(), d1 + q, d2 + q, inverses, &s[p], &t[p],
                                                         sum_k.data(), sum_r.data());
        }
    }

    static size_t size(const Shape& shape) { return (size_t)(shape.rows + 2) * (shape.columns + 2); }
    const size_t stride;
    // s, t: what `box` has yet to sum, with an empty border; across: sums of three along a row, empty above and below
    std::vector<double> s, t, across_s, across_t, S, T, sum_r, sum_k;
};

// One a thread: its arrays are used again for every pair.
class ZeroOffset {
public:
    ZeroOffset(const Shape& shape, const Job& job) : weights(job.poolings), plane(shape) {
        for (int pooling = 0; pooling < job.poolings; pooling++) {
            const int c = job.windows[pooling];
            if (c == EVERY_PAIR) continue;
            weights[pooling].assign(plane.s.size(), 0.0);
            for (int i = 0; i < shape.rows; i++)
                for (int j = 0; j < shape.columns; j++)
                    weights[pooling][plane.at(i, j)] = (double)windows_with_both(shape.rows, c, i, i) *
                                                       windows_with_both(shape.columns, c, j, j);
        }
    }

    // out[2 slot] = sum R, out[2 slot + 1] = sum K, weighted as the slot's pooling wants it, after its layer
    void operator()(const Images& a, long i, const Images& b, long j, const Job& job, double* out) {
        const Shape& shape = a.shape;
        const int rows = shape.rows, columns = shape.columns;
        const size_t n = shape.pixels();
        const double *x = a.exact(i), *y = b.exact(j);
        const bool equal = a.equal(i, b, j);
        plane.clear();
        for (int r = 0; r < rows; r++)
            for (int k = 0; k < shape.channels; k++)
                for (int c = 0; c < columns; c++) {
                    const size_t p = k * n + r * columns + c;
                    plane.s[plane.at(r, c)] += x[p] * y[p];
                }
        if (job.train_first) plane.t = plane.s;
        for (int h = 0; h < job.layers; h++) {
            const double *d1 = x + (shape.channels + 2 * h) * n, *d2 = y + (shape.channels + 2 * h) * n;
            plane.layer(equal, rows, columns, d1, d2, columns, n);
            for (int pooling = 0; pooling < job.poolings; pooling++) {
                double* to = out + 2 * (pooling * job.layers + h);
                to[0] = to[1] = 0;
                if (weights[pooling].empty()) {
                    for (int c = 0; c < columns; c++) to[0] += plane.sum_r[c], to[1] += plane.sum_k[c];
                } else if (job.read[h]) {
                    const double* weight = weights[pooling].data();
                    for (size_t p = 0; p < plane.s.size(); p++) to[0] += weight[p] * plane.t[p], to[1] += weight[p] * plane.s[p];
                }
            }
        }
    }

private:
    std::vector<std::vector<double>> weights;  // of the window poolings, laid out as the plane
    ExactPlane plane;
};

}  // namespace
