// Images and their normalisers as the CPU loops read them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "call.h"

namespace {

constexpr int LANES = 32;
constexpr int TALLEST = 64;  // rows of a plane whose rows are LANES floats
// Patch norms below this share of the image's largest count as 0: the product of two reciprocals stays a finite float.
constexpr double SMALLEST_NORM = 1e-18;

struct Shape {
    int channels, rows, columns, layers;
    bool wide() const { return columns > LANES || rows > TALLEST; }         // a plane has rows of its own length
    int row() const { return wide() ? (columns + 15) / 16 * 16 : LANES; }   // floats in a row
    int packed() const { return wide() ? 1 : LANES / columns; }             // planes or pairs side by side
    int groups() const { return (columns + packed() - 1) / packed(); }      // groups of d2 that fill the lanes
    int rotated() const { return packed() == 1 ? 2 * LANES : groups() * LANES; }  // floats in a rotated row
    size_t row_block() const { return (size_t)rows * row(); }
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

// Some images as the loops read them. Each image is scaled by a power of two so that its largest patch norm is near 1: no
// product then overflows or loses digits, and nothing is rounded.
class Images {
public:
    // x: all images, of which `count` from `begin` on are taken, and counted from 0.
    // slots: 1 repeats each image `packed` times across the lanes; packed() puts that many images side by side.
    // given: the deviations of all images, (layers, pixels) each, so many numbers apart; null to make them.
    // scaled_as: images of the same scales, null to find them
    Images(Call& call, const float* x, long begin, long count, const Shape& shape, int slots, const double* given = nullptr,
           size_t apart = 0, const Images* scaled_as = nullptr);
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
    const long begin, count;

private:
    void fill(long i);
    const float* x_;
    const int slots_;
    const double* const given_;
    const size_t apart_;
    const Images* const scaled_as_;
    std::vector<float> lanes_;
    std::vector<double> scale_;
    mutable std::vector<std::vector<double>> exact_;
    mutable std::unique_ptr<std::once_flag[]> once_;
};

Images::Images(Call& call, const float* x, long first, long n, const Shape& s, int slots, const double* given, size_t apart,
               const Images* scaled_as)
    : shape(s), begin(first), count(n), x_(x + first * s.channels * s.pixels()), slots_(slots),
      given_(given ? given + first * apart : nullptr), apart_(apart), scaled_as_(scaled_as), scale_(n), exact_(n),
      once_(new std::once_flag[n]) {
    lanes_.assign(blocks() * shape.image_floats(), 0.f);
    call.parallel(count, [] { return 0; }, [this](int, long i) { fill(i); });
}

void Images::fill(long i) {
    const size_t n = shape.pixels(), row = shape.row(), block = shape.row_block();
    const float* x = x_ + i * shape.channels * n;
    const std::vector<double> made = given_ ? std::vector<double>() : deviations(x, shape);
    const double* d = given_ ? given_ + i * apart_ : made.data();
    const double largest = scaled_as_ ? 0 : *std::max_element(d, d + n);
    const double scale = scaled_as_ ? 1 / scaled_as_->scale(i) : largest > 0 ? std::exp2(-std::ilogb(largest)) : 1.0;
    scale_[i] = 1 / scale;
    const int first = slots_ == 1 ? 0 : i % slots_, last = slots_ == 1 ? shape.packed() - 1 : first;
    for (int slot = first; slot <= last; slot++) {
        float* out = lanes_.data() + (i / slots_) * shape.image_floats() + slot * shape.columns;
        for (int k = 0; k < shape.channels; k++, out += block)
            for (int r = 0; r < shape.rows; r++)
                for (int c = 0; c < shape.columns; c++)
                    out[r * row + c] = (float)(x[k * n + r * shape.columns + c] * scale);
        for (int h = 0; h < shape.layers; h++, out += 2 * block)
            for (int r = 0; r < shape.rows; r++) {
                const double* __restrict from = d + h * n + r * shape.columns;
                float *__restrict deviation = out + r * row, *__restrict inverse = deviation + block;
                for (int c = 0; c < shape.columns; c++) {
                    const double value = from[c] * scale;
                    deviation[c] = value < SMALLEST_NORM ? 0.f : (float)value;
                    inverse[c] = value < SMALLEST_NORM ? 0.f : (float)(1 / value);
                }
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
