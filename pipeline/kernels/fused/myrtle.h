// The Myrtle kernels: blocks of convolutions with mean pools between them, a level of its own size each. On every level
// the planes go through their layers in L1, one after another, and then add up into the planes of the next level.
//
// A pool is the mean over the 2 x 2 pixels of both images: entry (p, p') of a level goes to (p / 2, p' / 2) of the next, so
// an even offset goes to half of it, and an odd one, by the parity of p, to the offsets around its half. Planes stay cyclic.
#pragma once
#include "output.h"
#include "planes.h"
#include "rotate.h"

namespace {

constexpr int LEVELS = 3;
// A pair with more correlations near 1 at a level's zero offset than one in so many is computed again in double.
constexpr int NEAR_SHARE = 4;
constexpr float POOLED = 1.f / 16;  // of a sum over the 2 x 2 pixels of both images

struct MyrtleJob {
    const int* blocks;  // convolutions on each level
    bool train_first, ntk;
};

std::vector<Shape> level_shapes(const Shape& image, const MyrtleJob& job) {
    std::vector<Shape> shapes;
    for (int level = 0; level < LEVELS; level++)
        shapes.push_back({level ? 0 : image.channels, image.rows >> level, image.columns >> level, job.blocks[level]});
    return shapes;
}

// Deviations of an image on all levels: how many numbers, and where a level's begin.
size_t deviations_before(const std::vector<Shape>& shapes, int level) {
    size_t count = 0;
    for (int l = 0; l < level; l++) count += shapes[l].layers * shapes[l].pixels();
    return count;
}

// Some images as every level reads them.
class LevelImages {
public:
    // deviations: of all images, level after level, (layers, pixels) of each
    LevelImages(Call& call, const float* x, const double* deviations, long begin, long count, const std::vector<Shape>& shapes)
        : count(count), begin(begin), apart_(deviations_before(shapes, LEVELS)), x_(x + begin * shapes[0].channels * shapes[0].pixels()),
          deviations_(deviations + begin * apart_) {
        for (int level = 0; level < LEVELS; level++)
            levels_.push_back(std::make_unique<Images>(call, x, begin, count, shapes[level], 1,
                                                       deviations + deviations_before(shapes, level), apart_,
                                                       level ? levels_[0].get() : nullptr));
    }
    const Images& level(int l) const { return *levels_[l]; }
    const float* pixels(long i) const { return x_ + i * level(0).shape.channels * level(0).shape.pixels(); }
    const double* deviations(long i) const { return deviations_ + i * apart_; }
    const long count, begin;

private:
    const size_t apart_;
    const float* const x_;
    const double* const deviations_;
    std::vector<std::unique_ptr<Images>> levels_;
};

// A pair in double, every offset by itself: for equal images and nearly equal ones, where float loses arccos.
class ExactMyrtle {
public:
    ExactMyrtle(const std::vector<Shape>& shapes, const MyrtleJob& job) : shapes_(shapes), job_(job), plane_(shapes[0]) {
        for (const Shape& shape : shapes_) {
            k_.emplace_back(&shape == &shapes_[0] ? 0 : shape.pixels() * shape.pixels());
            r_.emplace_back(k_.back().size());
        }
    }

    // out[0] = sum R, out[1] = sum K over all pixel pairs of the last level
    void operator()(const LevelImages& a, long i, const LevelImages& b, long j, double* out) {
        const bool equal = a.level(0).equal(i, b.level(0), j);
        out[0] = out[1] = 0;
        const double *d1 = a.deviations(i), *d2 = b.deviations(j);
        for (int level = 0; level < LEVELS; level++) {
            const Shape& shape = shapes_[level];
            const size_t n = shape.pixels();
            for (std::vector<double>* table : {&table1_, &table2_}) {
                const double* d = table == &table1_ ? d1 : d2;
                table->resize(2 * n * shape.layers);
                for (size_t h = 0; h < (size_t)shape.layers; h++)
                    for (size_t p = 0; p < n; p++) {
                        (*table)[2 * h * n + p] = d[h * n + p];
                        (*table)[(2 * h + 1) * n + p] = d[h * n + p] > 0 ? 1 / d[h * n + p] : 0;
                    }
            }
            d1 += shape.layers * n, d2 += shape.layers * n;
            if (level + 1 < LEVELS)
                for (auto* next : {&k_[level + 1], &r_[level + 1]}) std::fill(next->begin(), next->end(), 0.0);
            for (int o1 = 1 - shape.rows; o1 < shape.rows; o1++)
                for (int o2 = 1 - shape.columns; o2 < shape.columns; o2++)
                    offset(level, o1, o2, equal && !o1 && !o2, a.pixels(i), b.pixels(j), out);
        }
    }

private:
    void offset(int level, int o1, int o2, bool equal, const float* x, const float* y, double* out) {
        const Shape& shape = shapes_[level];
        const int rows = shape.rows - std::abs(o1), columns = shape.columns - std::abs(o2), w = shape.columns;
        const int top1 = std::max(0, -o1), left1 = std::max(0, -o2), top2 = std::max(0, o1), left2 = std::max(0, o2);
        const size_t n = shape.pixels(), first1 = top1 * w + left1, first2 = top2 * w + left2;
        plane_.clear();
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                const size_t p1 = first1 + r * w + c, p2 = first2 + r * w + c, at = plane_.at(r, c);
                if (level) {
                    plane_.s[at] = k_[level][p1 * n + p2] * POOLED, plane_.t[at] = r_[level][p1 * n + p2] * POOLED;
                } else {
                    for (int channel = 0; channel < shape.channels; channel++)
                        plane_.s[at] += (double)x[channel * n + p1] * y[channel * n + p2];
                    plane_.t[at] = job_.train_first ? plane_.s[at] : 0.0;
                }
            }
        for (int h = 0; h < shape.layers; h++)
            plane_.layer(equal, rows, columns, table1_.data() + 2 * h * n + first1, table2_.data() + 2 * h * n + first2, w, n);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                const size_t at = plane_.at(r, c);
                if (level + 1 == LEVELS) {
                    out[0] += plane_.t[at], out[1] += plane_.s[at];
                    continue;
                }
                const size_t p1 = (top1 + r) / 2 * (w / 2) + (left1 + c) / 2, p2 = (top2 + r) / 2 * (w / 2) + (left2 + c) / 2;
                k_[level + 1][p1 * (n / 4) + p2] += plane_.s[at], r_[level + 1][p1 * (n / 4) + p2] += plane_.t[at];
            }
    }

    const std::vector<Shape> shapes_;
    const MyrtleJob job_;
    ExactPlane plane_;
    std::vector<double> table1_, table2_;
    std::vector<std::vector<double>> k_, r_;  // what a level starts from, (p, p'), times 16
};

// What a thread works with.
class Myrtle {
public:
    Myrtle(const std::vector<Shape>& shapes, const MyrtleJob& job) : job_(job), exact_(shapes, job) {
        for (const Shape& shape : shapes) levels_.push_back(std::make_unique<Level>(shape));
    }

    void take_second(const LevelImages& images, long j) {
        for (int l = 0; l < LEVELS; l++) rotate(images.level(l).lanes(j), levels_[l]->shape, levels_[l]->rotated.data());
    }

    // As ExactMyrtle, of image i with the second image taken. Returns whether they were computed in double.
    bool pair(const LevelImages& first, long i, const LevelImages& second, long j, double* out) {
        bool again = first.level(0).equal(i, second.level(0), j);
        for (int l = 0; l < LEVELS && !again; l++) again = level(l, first.level(l).lanes(i), out);
        if (again) return exact_(first, i, second, j, out), true;
        const double scale = first.level(0).scale(i) * second.level(0).scale(j);
        out[0] *= scale, out[1] *= scale;
        return false;
    }

private:
    struct Level {
        explicit Level(const Shape& s)
            : shape(s), planes(s, 1), plane(planes[0]), floats(s.row_block()),
              rotated((size_t)(s.channels + 2 * s.layers) * s.rows * s.rotated() + LANES) {
            for (int group = 0; group < s.groups(); group++) cuts.emplace_back(s, group, true);
            if (!s.channels) k.resize(s.rows * s.groups() * floats), r.resize(k.size());
        }
        size_t place(int d1, int group) const { return ((size_t)d1 * shape.groups() + group) * floats; }

        const Shape shape;
        Planes planes;
        const Plane plane;
        const size_t floats;  // of a plane without guards
        std::vector<float> rotated;
        std::vector<Cut> cuts;
        std::vector<float> k, r;  // what it starts from, for each d1 and group a plane, times 16
    };

    // All planes of a level. Returns whether too many correlations at the zero offset were near 1.
    bool level(int l, const float* x1, double* out) {
        Level& here = *levels_[l];
        const Shape& shape = here.shape;
        const bool last = l + 1 == LEVELS;
        if (!last)
            for (auto* next : {&levels_[l + 1]->k, &levels_[l + 1]->r}) std::fill(next->begin(), next->end(), 0.f);
        double lanes[2][LANES] = {};
        for (int d1 = 0; d1 < shape.rows; d1++)
            for (int group = 0; group < shape.groups(); group++) {
                Sums sums = {};
                const bool zero = d1 == 0 && group == 0;
                start(here, d1, group, x1);
                layers(here, l == 0, last, d1, group, x1, zero, sums);
                if (zero) {
                    long near = 0;
                    for (int lane = 0; lane < shape.columns; lane++) near += sums.near[lane];
                    if (near * NEAR_SHARE > (long)shape.pixels() * shape.layers) return true;
                }
                if (last) {
                    for (int lane = 0; lane < LANES; lane++) lanes[0][lane] += sums.r[lane], lanes[1][lane] += sums.k[lane];
                } else {
                    pool(here, *levels_[l + 1], d1, group, here.plane.s, levels_[l + 1]->k.data());
                    if (job_.ntk) pool(here, *levels_[l + 1], d1, group, here.plane.t, levels_[l + 1]->r.data());
                }
            }
        for (int kind = 0; kind < 2 && last; kind++) {
            out[kind] = 0;
            for (int lane = 0; lane < LANES; lane++) out[kind] += lanes[kind][lane];
        }
        return false;
    }

    void start(const Level& here, int d1, int group, const float* x1) const {
        const Shape& shape = here.shape;
        if (shape.channels) {
            const float* x2 = here.rotated.data() + (shape.packed() == 1 ? group : group * LANES);
            start_plane(here.plane, shape, d1, x1, x2, shape.rotated(), job_.train_first);
            return;
        }
        const float *k = here.k.data() + here.place(d1, group), *r = here.r.data() + here.place(d1, group);
        for (int i = 0; i < shape.rows; i++, k += LANES, r += LANES)
            for (int at = 0; at < LANES; at += WIDTH) {
                store(here.plane.S(i) + at, load(k + at) * POOLED);
                if (job_.ntk) store(here.plane.T(i) + at, load(r + at) * POOLED);
            }
    }

    void layers(const Level& here, bool first, bool last, int d1, int group, const float* x1, bool count, Sums& sums) const {
        const Shape& shape = here.shape;
        const size_t stride2 = shape.rotated(), block1 = shape.row_block(), block2 = shape.rows * stride2;
        const float* x2 = here.rotated.data() + (shape.packed() == 1 ? group : group * LANES);
        const auto layer_of = count ? any_layer<false, true> : any_layer<false, false>;
        for (int h = 0; h < shape.layers; h++)
            layer_of(first && h == 0, job_.ntk, last && h + 1 == shape.layers)(
                here.plane, here.cuts[group], shape.rows, d1, x1 + (shape.channels + 2 * h) * block1,
                x2 + (shape.channels + 2 * h) * block2, stride2, sums);
    }

    // Adds a plane, whose first row is given, to the next level's. Its columns of even and of odd p go to an offset each, its
    // rows too unless d1 is even.
    static void pool(const Level& here, const Level& next, int d1, int group, const float* rows, float* to) {
        const int half = next.shape.columns, packed = next.shape.packed(), down = next.shape.rows;
        for (int slot = 0; slot < here.shape.packed(); slot++, rows += 2 * half) {
            const int d2 = group * here.shape.packed() + slot;
            if (d2 >= here.shape.columns) return;
            const int across[2] = {d2 / 2, (d2 + 1) / 2 % half};
            float* even[2];  // of even and odd rows
            for (int parity = 0; parity < 2; parity++)
                even[parity] = to + next.place((d1 + parity) / 2 % down, across[0] / packed) + across[0] % packed * half;
            const ptrdiff_t odd = (ptrdiff_t)(across[1] / packed - across[0] / packed) * (ptrdiff_t)next.floats +
                                  (across[1] % packed - across[0] % packed) * half;
            if (half == LANES / 2)
                (odd ? pool_rows<LANES / 2, false> : pool_rows<LANES / 2, true>)(rows, down, half, even[0], even[1], odd);
            else
                (odd ? pool_rows<0, false> : pool_rows<0, true>)(rows, down, half, even[0], even[1], odd);
        }
    }

    // HALF: how many columns are left, 0 where that is `half`.  ONE: even and odd columns go to the same place.
    template <int HALF, bool ONE>
    static __attribute__((noinline)) void pool_rows(const float* row, int down, int half, float* to0, float* to1, ptrdiff_t odd) {
        if (to0 == to1) {
            for (int i = 0; i < down; i++, row += 2 * STRIDE, to0 += LANES)
                add_pairs<HALF, ONE>(half, to0, odd, [&](int at) { return load(row + at) + load(row + STRIDE + at); },
                                     [&](int at) { return row[at] + row[STRIDE + at]; });
            return;
        }
        for (int i = 0; i < down; i++, row += STRIDE, to0 += LANES, to1 += LANES) {
            const auto vectors = [&](int at) { return load(row + at); };
            const auto scalars = [&](int at) { return row[at]; };
            add_pairs<HALF, ONE>(half, to0, odd, vectors, scalars);
            row += STRIDE;
            add_pairs<HALF, ONE>(half, to1, odd, vectors, scalars);
        }
    }

    template <int HALF, bool ONE, class Vectors, class Scalars>
    static __attribute__((always_inline)) void add_pairs(int half, float* to, ptrdiff_t odd, Vectors vectors, Scalars scalars) {
        for (int k = 0; k < HALF; k += WIDTH, to += WIDTH) {
            const vec a = vectors(2 * k), b = vectors(2 * k + WIDTH), evens = every_other<0>(a, b), odds = every_other<1>(a, b);
            if (ONE)
                store(to, load(to) + (evens + odds));
            else
                store(to, load(to) + evens), store(to + odd, load(to + odd) + odds);
        }
        for (int k = 0; !HALF && k < half; k++)
            if (ONE)
                to[k] += scalars(2 * k) + scalars(2 * k + 1);
            else
                to[k] += scalars(2 * k), to[k + odd] += scalars(2 * k + 1);
    }

    const MyrtleJob job_;
    ExactMyrtle exact_;
    std::vector<std::unique_ptr<Level>> levels_;
};

// Returns how many pairs were equal or nearly equal and so computed in double.
long myrtle(Call& call, const LevelImages& first, const LevelImages& second, const std::vector<Shape>& shapes,
            const MyrtleJob& job, const Output& out) {
    const long run = 4, runs = (first.count + run - 1) / run;
    std::atomic<long> again{0};
    auto make = [&] { return Myrtle(shapes, job); };
    call.parallel(second.count * runs, make, [&](Myrtle& tools, long unit) {
        const long j = unit / runs, begin = unit % runs * run, end = std::min(begin + run, first.count);
        if (!out.wanted(first.begin + end - 1, second.begin + j)) return;
        tools.take_second(second, j);
        for (long i = begin; i < end && call.goes_on(); i++) {
            if (!out.wanted(first.begin + i, second.begin + j)) continue;
            double sums[2];
            again += tools.pair(first, i, second, j, sums);
            out.put(0, first.begin + i, second.begin + j, sums[0], sums[1]);
        }
    });
    return again;
}

}  // namespace
