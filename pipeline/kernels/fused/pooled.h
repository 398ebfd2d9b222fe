// Global and local average pooling: every offset plane of a pair, one after another in L1 from the first layer to the last.
#pragma once
#include "output.h"
#include "planes.h"
#include "rotate.h"

namespace {

// The sum of a plane's rows, each times its weight, in each lane. Not inlined: the same bits beside anything.
__attribute__((noinline)) void weighted_rows(const float* first, int rows, const float* weights, float* sums) {
    for (int at = 0; at < LANES; at += WIDTH) {
        vec sum = {};
        for (int i = 0; i < rows; i++) sum += load(first + i * STRIDE + at) * weights[i];
        store(sums + at, sum);
    }
}

// The weights of a window's planes, a factor an axis, and which planes have any.
class Window {
public:
    Window(const Shape& shape, int c) : rows_(shape.rows), c_(c) {
        for (int d1 = 0; d1 < rows_; d1++)
            for (int i = 0; i < rows_; i++) down_.push_back(windows_with_both(rows_, c, i, (i + d1) % rows_));
        for (int lane = 0; lane < shape.groups() * LANES; lane++) {
            const int w = shape.columns, slot = lane % LANES / w, j = lane % LANES % w, d2 = lane / LANES * shape.packed() + slot;
            across_.push_back(slot < shape.packed() && d2 < w ? windows_with_both(w, c, j, (j + d2) % w) : 0);
        }
        for (int group = 0; group < shape.groups(); group++)
            reached_.push_back(std::any_of(across(group), across(group) + LANES, [](double weight) { return weight > 0; }));
    }
    const float* down(int d1) const { return down_.data() + d1 * rows_; }
    const double* across(int group) const { return across_.data() + group * LANES; }
    bool reaches(int d1, int group) const { return std::min(d1, rows_ - d1) <= 2 * c_ && reached_[group]; }

private:
    const int rows_, c_;
    std::vector<float> down_;     // [d1][row]
    std::vector<double> across_;  // [group][lane]
    std::vector<bool> reached_;   // [group]
};

// What a thread works with.
class Pooled {
public:
    Pooled(const Shape& shape, const Job& job)
        : shape_(shape), job_(job), planes_(shape, 1), plane_(planes_[0]), zero_offset_(shape, job),
          rotated_((size_t)(shape.channels + 2 * shape.layers) * shape.rows * shape.rotated() + LANES),
          lanes_(2 * job.slots() * LANES) {
        for (int group = 0; group < shape.groups(); group++) cuts_.emplace_back(shape, group, true);
        for (int pooling = 0; pooling < job.poolings; pooling++) {
            if (job.windows[pooling] == EVERY_PAIR)
                every_pair_ = pooling;
            else
                windows_.emplace_back(pooling, Window(shape, job.windows[pooling]));
        }
    }

    void take_second(const Images& images, long j) { rotate(images.lanes(j), shape_, rotated_.data()); }

    // As ZeroOffset, over all pixel pairs: of image i with the second image taken
    void pair(const Images& first, long i, const Images& second, long j, double* out) {
        zero_offset_(first, i, second, j, job_, out);
        std::fill(lanes_.begin(), lanes_.end(), 0.0);
        for (int d1 = 0; d1 < shape_.rows; d1++)
            for (int group = 0; group < shape_.groups(); group++)
                if (wanted(d1, group)) offset(first.lanes(i), d1, group);
        for (int slot = 0; slot < 2 * job_.slots(); slot++) {
            double sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += lanes_[slot * LANES + lane];
            out[slot] += sum;
        }
    }

private:
    // Whether some pooling reads the planes of these offsets: `box` never mixes offsets, so those of no weight are left out.
    bool wanted(int d1, int group) const {
        return every_pair_ >= 0 || std::any_of(windows_.begin(), windows_.end(),
                                               [&](const auto& window) { return window.second.reaches(d1, group); });
    }

    void offset(const float* x1, int d1, int group) {
        const float* x2 = rotated_.data() + (shape_.packed() == 1 ? group : group * LANES);
        const size_t stride2 = shape_.rotated(), block1 = shape_.row_block(), block2 = shape_.rows * stride2;
        // The plane of offset (0, 0) is computed apart, in double.
        const int skip = d1 == 0 && group == 0 ? shape_.columns : 0;
        start_plane(plane_, shape_, d1, x1, x2, stride2, job_.train_first);
        for (int h = 0; h < job_.layers; h++) {
            Sums sums;
            any_layer<false, false>(h == 0, job_.ntk, job_.read[h] && every_pair_ >= 0)(
                plane_, cuts_[group], shape_.rows, d1, x1 + (shape_.channels + 2 * h) * block1,
                x2 + (shape_.channels + 2 * h) * block2, stride2, sums);
            if (!job_.read[h]) continue;
            if (every_pair_ >= 0) {
                double* to = lanes(every_pair_, h);
                for (int lane = skip; lane < LANES; lane++) to[lane] += sums.r[lane], to[LANES + lane] += sums.k[lane];
            }
            for (const auto& [pooling, window] : windows_) {
                if (!window.reaches(d1, group)) continue;
                weighted_rows(plane_.s, shape_.rows, window.down(d1), sums.k);
                weighted_rows(job_.ntk ? plane_.t : plane_.s, shape_.rows, window.down(d1), sums.r);
                const double* weight = window.across(group);
                double* to = lanes(pooling, h);
                for (int lane = skip; lane < LANES; lane++)
                    to[lane] += weight[lane] * sums.r[lane], to[LANES + lane] += weight[lane] * sums.k[lane];
            }
        }
    }

    // Sums of R in each lane, and after them those of K.
    double* lanes(int pooling, int h) { return lanes_.data() + 2 * (pooling * job_.layers + h) * LANES; }

    const Shape shape_;
    const Job job_;
    Planes planes_;
    const Plane plane_;
    ZeroOffset zero_offset_;
    std::vector<float> rotated_;
    std::vector<double> lanes_;
    std::vector<Cut> cuts_;
    int every_pair_ = -1;  // which pooling sums over every pair, if any
    std::vector<std::pair<int, Window>> windows_;
};

void pooled(Call& call, const Images& first, const Images& second, const Job& job, const Output& out) {
    // A unit of work is one second image against a run of first ones, which shares its rotation.
    const long run = 8, runs = (first.count + run - 1) / run;
    auto make = [&] { return Pooled(first.shape, job); };
    call.parallel(second.count * runs, make, [&](Pooled& tools, long unit) {
        const long j = unit / runs, begin = unit % runs * run, end = std::min(begin + run, first.count);
        if (!out.wanted(first.begin + end - 1, second.begin + j)) return;
        std::vector<double> sums(2 * job.slots());
        tools.take_second(second, j);
        for (long i = begin; i < end && call.goes_on(); i++) {
            if (!out.wanted(first.begin + i, second.begin + j)) continue;
            tools.pair(first, i, second, j, sums.data());
            const double scale = first.scale(i) * second.scale(j);
            for (int slot = 0; slot < job.slots(); slot++)
                if (job.read[slot % job.layers])
                    out.put(slot, first.begin + i, second.begin + j, sums[2 * slot] * scale, sums[2 * slot + 1] * scale);
        }
    });
}

}  // namespace
