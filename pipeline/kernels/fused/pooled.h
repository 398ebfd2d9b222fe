// Global average pooling: every offset plane of a pair, one after another in L1 from the first layer to the last.
#pragma once
#include "output.h"
#include "planes.h"

namespace {

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

// What a thread works with.
class Pooled {
public:
    Pooled(const Shape& shape, const Job& job)
        : shape_(shape), job_(job), planes_(shape, 1), plane_(planes_[0]), zero_offset_(shape),
          rotated_((size_t)(shape.channels + 2 * shape.layers) * shape.rows * shape.rotated() + LANES),
          lanes_(2 * job.layers * LANES) {
        for (int group = 0; group < shape.groups(); group++) cuts_.emplace_back(shape, group, true);
    }

    void take_second(const Images& images, long j) { rotate(images.lanes(j), shape_, rotated_.data()); }

    // out[2 h] = sum R, out[2 h + 1] = sum K over all pixel pairs after layer h, of image i with the second image taken
    void pair(const Images& first, long i, const Images& second, long j, double* out) {
        zero_offset_(first, i, second, j, job_, out);
        std::fill(lanes_.begin(), lanes_.end(), 0.0);
        for (int d1 = 0; d1 < shape_.rows; d1++)
            for (int group = 0; group < shape_.groups(); group++) offset(first.lanes(i), d1, group);
        for (int slot = 0; slot < 2 * job_.layers; slot++) {
            double sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += lanes_[slot * LANES + lane];
            out[slot] += sum;
        }
    }

private:
    void offset(const float* x1, int d1, int group) {
        const float* x2 = rotated_.data() + (shape_.packed() == 1 ? group : group * LANES);
        const size_t stride2 = shape_.rotated(), block1 = shape_.row_block(), block2 = shape_.rows * stride2;
        // The plane of offset (0, 0) is computed apart, in double.
        const int skip = d1 == 0 && group == 0 ? shape_.columns : 0;
        start_plane(plane_, shape_, d1, x1, x2, stride2, job_.train_first);
        for (int h = 0; h < job_.layers; h++) {
            Sums sums;
            any_layer<false, false>(h == 0, job_.ntk, job_.read[h])(
                plane_, cuts_[group], shape_.rows, d1, x1 + (shape_.channels + 2 * h) * block1,
                x2 + (shape_.channels + 2 * h) * block2, stride2, sums);
            if (!job_.read[h]) continue;
            double* to = lanes_.data() + 2 * h * LANES;
            for (int lane = skip; lane < LANES; lane++) to[lane] += sums.r[lane], to[LANES + lane] += sums.k[lane];
        }
    }

    const Shape shape_;
    const Job job_;
    Planes planes_;
    const Plane plane_;
    ZeroOffset zero_offset_;
    std::vector<float> rotated_;
    std::vector<double> lanes_;
    std::vector<Cut> cuts_;
};

void pooled(Call& call, const Images& first, const Images& second, const Job& job, const Output& out) {
    // A unit of work is one second image against a run of first ones, which shares its rotation.
    const long run = 8, runs = (first.count + run - 1) / run;
    auto make = [&] { return Pooled(first.shape, job); };
    call.parallel(second.count * runs, make, [&](Pooled& tools, long unit) {
        const long j = unit / runs, begin = unit % runs * run, end = std::min(begin + run, first.count);
        if (!out.wanted(first.begin + end - 1, second.begin + j)) return;
        std::vector<double> sums(2 * job.layers);
        tools.take_second(second, j);
        for (long i = begin; i < end && call.goes_on(); i++) {
            if (!out.wanted(first.begin + i, second.begin + j)) continue;
            tools.pair(first, i, second, j, sums.data());
            const double scale = first.scale(i) * second.scale(j);
            for (int h = 0; h < job.layers; h++)
                if (job.read[h])
                    out.put(h, first.begin + i, second.begin + j, sums[2 * h] * scale, sums[2 * h + 1] * scale);
        }
    });
}

}  // namespace
