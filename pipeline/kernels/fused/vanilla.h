// The vanilla kernel: the zero offset of many pairs, layer by layer.
#pragma once
#include <unistd.h>

#include "output.h"
#include "planes.h"

namespace {

// A vanilla pair with more correlations near 1, over the layers up to a depth, than one in NEAR_ONE_SHARE of its pixels is
// computed again in double: float32 loses arccos there.
constexpr int NEAR_ONE_SHARE = 64;

// Pairs go through a layer in squares of so many images a side: its tables are then read once for all of them, and all
// that a layer needs lies in the second-level cache.
long square_side(const Shape& shape) {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE), cache = (found > 0 ? found : 512 << 10) / 4 * 3;
#else
    const long cache = 384 << 10;
#endif
    const long plane = Planes::bytes(shape), tables = 2 * shape.row_block() * sizeof(float);
    long side = 1;
    while (side < 8 && (side + 1) * (side + 1) * plane + 2 * (side + 1) * tables <= cache) side++;
    return side;
}

// A square of pairs: what a thread works with.
class Square {
public:
    Square(const Shape& shape, const Job& job, long side)
        : shape_(shape), job_(job), side_(side), cut_(shape, 0, false), planes_(shape, side * side), sums_(side * side),
          running_(side * side), totals_(side * side * shape.packed() * job.layers), exact_(2 * job.slots()), zero_offset_(shape, job) {}

    // Images from i0, and blocks of second images from b0. Returns how many pairs were nearly equal.
    long compute(const Images& first, long i0, const Images& second, long b0, const Output& out) {
        pairs_.clear();
        for (long b = b0; b < std::min(b0 + side_, second.blocks()); b++)
            for (long i = i0; i < std::min(i0 + side_, first.count); i++)
                if (out.wanted(first.begin + i, second.begin + b * shape_.packed())) pairs_.push_back({i, b});
        for (size_t k = 0; k < pairs_.size(); k++) {
            sums_[k] = {}, running_[k] = {};
            start_plane(planes_[k], shape_, 0, first.lanes(pairs_[k].i), second.lanes(pairs_[k].block), shape_.row(),
                        job_.train_first);
        }
        for (int h = 0; h < job_.layers; h++)
            for (size_t k = 0; k < pairs_.size(); k++) layer_of(k, h, first, second);
        long again = 0;
        for (size_t k = 0; k < pairs_.size(); k++)
            for (int slot = 0; slot < shape_.packed(); slot++) again += put(k, slot, first, second, out);
        return again;
    }

private:
    struct Pair {
        long i, block;
    };

    void layer_of(size_t k, int h, const Images& first, const Images& second) {
        const size_t block = shape_.row_block(), at = (shape_.channels + 2 * h) * block;
        const float *table1 = first.lanes(pairs_[k].i) + at, *table2 = second.lanes(pairs_[k].block) + at;
        if (shape_.wide()) {
            any_wide_layer(h == 0, job_.ntk, job_.read[h])(planes_[k], shape_, table1, table2, running_[k]);
            totals_[place(k, 0, h)] = running_[k];
            return;
        }
        const auto layer = shape_.columns == LANES ? any_layer<true, true> : any_layer<false, true>;
        Sums& sums = sums_[k];
        layer(h == 0, job_.ntk, job_.read[h])(planes_[k], cut_, shape_.rows, 0, table1, table2, LANES, sums);
        if (!job_.read[h]) return;
        for (int slot = 0; slot < shape_.packed(); slot++) {
            Totals total;
            for (int lane = slot * shape_.columns; lane < (slot + 1) * shape_.columns; lane++)
                total.r += sums.r[lane], total.k += sums.k[lane], total.near += sums.near[lane];
            totals_[place(k, slot, h)] = total;
        }
    }

    bool put(size_t k, int slot, const Images& first, const Images& second, const Output& out) {
        const long i = pairs_[k].i, j = pairs_[k].block * shape_.packed() + slot;
        if (j >= second.count || !out.wanted(first.begin + i, second.begin + j)) return false;
        const double scale = first.scale(i) * second.scale(j);
        bool again = first.equal(i, second, j), computed = false;
        for (int h = 0; h < job_.layers; h++) {
            if (!job_.read[h]) continue;
            const Totals& total = totals_[place(k, slot, h)];
            // From the layers up to this one alone: a depth's value does not depend on those beside it.
            again = again || total.near * NEAR_ONE_SHARE > (long)shape_.pixels();
            if (again && !computed) zero_offset_(first, i, second, j, job_, exact_.data()), computed = true;
            const double r = again ? exact_[2 * h] : total.r, k0 = again ? exact_[2 * h + 1] : total.k;
            out.put(h, first.begin + i, second.begin + j, r * scale, k0 * scale);
        }
        return computed;
    }

    size_t place(size_t k, int slot, int h) const { return (k * shape_.packed() + slot) * job_.layers + h; }

    const Shape shape_;
    const Job job_;
    const long side_;
    const Cut cut_;
    Planes planes_;
    std::vector<Sums> sums_;
    std::vector<Totals> running_, totals_;
    std::vector<double> exact_;
    ZeroOffset zero_offset_;
    std::vector<Pair> pairs_;
};

// Returns how many pairs were nearly equal and so computed in double.
long vanilla(Call& call, const Images& first, const Images& second, const Job& job, const Output& out) {
    const long side = square_side(first.shape), across = (second.blocks() + side - 1) / side;
    const long down = (first.count + side - 1) / side;
    std::atomic<long> again{0};
    auto make = [&] { return Square(first.shape, job, side); };
    call.parallel(across * down, make, [&](Square& square, long unit) {
        const long i = unit / across * side, block = unit % across * side;
        if (!out.wanted(first.begin + std::min(i + side, first.count) - 1, second.begin + block * first.shape.packed())) return;
        again += square.compute(first, i, second, block, out);
    });
    return again;
}

}  // namespace
