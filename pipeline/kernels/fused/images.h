// Images and their normalisers as the CPU loops read them, and the threads that share the work.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr int LANES = 32;
// Patch norms below this share of the image's largest count as 0: the product of two reciprocals stays a finite float.
constexpr double SMALLEST_NORM = 1e-18;

struct Shape {
    int channels, rows, columns, layers;
    int packed() const { return LANES / columns; }                          // planes or pairs side by side
    int groups() const { return (columns + packed() - 1) / packed(); }      // groups of d2 that fill the lanes
    int rotated() const { return packed() == 1 ? 2 * LANES : groups() * LANES; }  // floats in a rotated row
    size_t row_block() const { return (size_t)rows * LANES; }
    size_t pixels() const { return (size_t)rows * columns; }
    // Floats of one image: its pixels, then for each layer its deviations, then their reciprocals.
    size_t image_floats() const { return (size_t)(channels + 2 * layers) * row_block(); }
};

// sum over the 3 x 3 neighbourhood on the diagonal p = p', in double: along rows, then across them
void box(const double* __restrict in, double* __restrict out, double* __restrict along, int rows, int columns) {
    for (int i = 0; i < rows; i++) {
        const double* x = in + i * columns;
        double* y = along + i * columns;
        for (int j = 0; j < columns; j++) y[j] = x[j];
        for (int j = 1; j < columns; j++) y[j] += x[j - 1];
        for (int j = 0; j < columns - 1; j++) y[j] += x[j + 1];
    }
    const int n = rows * columns;
    for (int p = 0; p < n; p++) out[p] = along[p];
    for (int p = columns; p < n; p++) out[p] += along[p - columns];
    for (int p = 0; p < n - columns; p++) out[p] += along[p + columns];
}

// sqrt(S_h(x, x)[p, p]) for every layer, (layers, pixels) in double: on the diagonal S_{h+1} = box(S_h / 9)
std::vector<double> deviations(const float* x, const Shape& shape) {
    const size_t n = shape.pixels();
    std::vector<double> s(n), next(n), along(n), out(shape.layers * n);
    for (size_t p = 0; p < n; p++) {
        double sum = 0;
        for (int c = 0; c < shape.channels; c++) sum += (double)x[c * n + p] * x[c * n + p];
        s[p] = sum;
    }
    for (int h = 0; h < shape.layers; h++) {
        box(s.data(), next.data(), along.data(), shape.rows, shape.columns);
        for (size_t p = 0; p < n; p++) out[h * n + p] = std::sqrt(next[p]), s[p] = next[p] / 9;
    }
    return out;
}

// A set of images as the loops read them. Each image is scaled by a power of two so that its largest patch norm is near
// 1: no product then overflows or loses digits, and nothing is rounded.
class Images {
public:
    // slots: 1 repeats each image `packed` times across the lanes; packed() puts that many images side by side
    Images(const float* x, long count, const Shape& shape, int slots, int threads);
    const float* lanes(long block) const { return lanes_.data() + block * shape.image_floats(); }
    long blocks() const { return (count + slots_ - 1) / slots_; }
    double scale(long i) const { return scale_[i]; }
    // (channels, pixels) and (layers, 2, pixels) in double, made when first asked for
    const double* exact(long i) const;
    bool equal(long i, const Images& other, long j) const {
        const size_t n = shape.channels * shape.pixels();
        return !std::memcmp(x_ + i * n, other.x_ + j * n, n * sizeof(float));
    }
    const Shape shape;
    const long count;

private:
    void fill(long i);
    const float* x_;
    const int slots_;
    std::vector<float> lanes_;
    std::vector<double> scale_;
    mutable std::vector<std::vector<double>> exact_;
    mutable std::unique_ptr<std::once_flag[]> once_;
};

// Run work(k) for k in 0 .. count - 1 on so many threads; which thread takes which k never changes a value.
template <class Work> void parallel(long count, int threads, Work work) {
    std::atomic<long> next{0};
    auto loop = [&] {
        for (long k; (k = next.fetch_add(1)) < count;) work(k);
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads && t < count; t++) others.emplace_back(loop);
    loop();
    for (auto& thread : others) thread.join();
}

Images::Images(const float* x, long n, const Shape& s, int slots, int threads)
    : shape(s), count(n), x_(x), slots_(slots), scale_(n), exact_(n), once_(new std::once_flag[n]) {
    lanes_.assign(blocks() * shape.image_floats(), 0.f);
    parallel(count, threads, [this](long i) { fill(i); });
}

void Images::fill(long i) {
    const size_t n = shape.pixels(), row = shape.row_block();
    const float* x = x_ + i * shape.channels * n;
    const std::vector<double> d = deviations(x, shape);
    const double largest = *std::max_element(d.begin(), d.begin() + n);
    const double scale = largest > 0 ? std::exp2(-std::ilogb(largest)) : 1.0;
    scale_[i] = 1 / scale;
    float* out = lanes_.data() + (i / slots_) * shape.image_floats();
    const int first = slots_ == 1 ? 0 : i % slots_, last = slots_ == 1 ? shape.packed() - 1 : first;
    for (int slot = first; slot <= last; slot++)
        for (int r = 0; r < shape.rows; r++)
            for (int c = 0; c < shape.columns; c++) {
                const size_t from = r * shape.columns + c, to = r * LANES + slot * shape.columns + c;
                for (int k = 0; k < shape.channels; k++) out[k * row + to] = (float)(x[k * n + from] * scale);
                for (int h = 0; h < shape.layers; h++) {
                    const double value = d[h * n + from] * scale;
                    float* table = out + (shape.channels + 2 * h) * row;
                    const bool empty = value < SMALLEST_NORM;
                    table[to] = empty ? 0.f : (float)value;
                    table[row + to] = empty ? 0.f : (float)(1 / value);
                }
            }
}

const double* Images::exact(long i) const {
    std::call_once(once_[i], [&] {
        const size_t n = shape.pixels();
        const float* x = x_ + i * shape.channels * n;
        const std::vector<double> d = deviations(x, shape);
        std::vector<double>& out = exact_[i];
        out.resize((shape.channels + 2 * shape.layers) * n);
        for (size_t k = 0; k < shape.channels * n; k++) out[k] = x[k] / scale_[i];
        for (int h = 0; h < shape.layers; h++)
            for (size_t p = 0; p < n; p++) {
                const double value = d[h * n + p] / scale_[i];
                double* table = out.data() + (shape.channels + 2 * h) * n;
                table[p] = value, table[n + p] = value > 0 ? 1 / value : 0;
            }
    });
    return exact_[i].data();
}

}  // namespace
