// The CNTK on a CPU: what cpu.py calls.
#include "myrtle.h"
#include "pooled.h"
#include "vanilla.h"

namespace {

// So many bytes of tables at most are held for each side of a matrix at once, and no fewer than so many images.
constexpr size_t PANEL_BYTES = 64 << 20;
constexpr long PANEL_IMAGES = 64;

long panel_images(const Shape& shape, int slots) {
    return std::max<long>(PANEL_IMAGES, PANEL_BYTES / (shape.image_floats() * sizeof(float)) * slots);
}

// Both families: panel by panel, the tables of its images, then its pairs. Returns how many pairs were computed again.
template <class Family>
long panels(Call& call, const float* x1, long n1, const float* x2, long n2, const Shape& shape, int slots, const Job& job,
            const Output& out, Family family) {
    const long panel = panel_images(shape, slots);
    long again = 0;
    for (long i = 0; i < n1 && call.goes_on(); i += panel) {
        const Images first(call, x1, i, std::min(panel, n1 - i), shape, 1);
        for (long j = 0; j < n2 && call.goes_on(); j += panel) {
            if (!out.wanted(std::min(i + panel, n1) - 1, j)) break;
            const bool same = out.symmetric && i == j && slots == 1;
            const std::unique_ptr<Images> other(
                same ? nullptr : new Images(call, x2, j, std::min(panel, n2 - j), shape, slots));
            again += family(call, first, same ? first : *other, job, out);
        }
    }
    return again;
}

// Each image with itself, which is row 0 of `out`; sums(tools, images, i, to) as Pooled::pair.
template <class Make, class Sums>
void self_pairs(Call& call, const float* x, long n, const Shape& shape, const Job& job, const Output& out, Make make, Sums sums) {
    const long panel = panel_images(shape, 1);
    for (long begin = 0; begin < n && call.goes_on(); begin += panel) {
        const Images images(call, x, begin, std::min(panel, n - begin), shape, 1);
        call.parallel(images.count, make, [&](auto& tools, long i) {
            std::vector<double> found(2 * job.slots());
            sums(tools, images, i, found.data());
            const double scale = images.scale(i) * images.scale(i);
            for (int slot = 0; slot < job.slots(); slot++)
                if (job.read[slot % job.layers]) out.put(slot, 0, begin + i, found[2 * slot] * scale, found[2 * slot + 1] * scale);
        });
    }
}

enum Pairs : int { ALL = 0, LOWER = 1, SELF = 2 };

}  // namespace

extern "C" {

// x1 (n1, channels, rows, columns), x2 (n2, ...); pairs: see Pairs, x2 is x1 where not ALL; windows: for each pooling c of its
// window, or EVERY_PAIR; ntk, nngp: for each pooling, and of it for each layer, where the kernel at the depth that reads it out
// goes, a matrix (n1, n2) whose rows are `stride` apart, one row (n1) for SELF, or null; stop: see Call; again: how many vanilla
// pairs were nearly equal and so computed in double. Returns a Status; what was not computed is not written.
int ntk_cntk(int is_pooled, const float* x1, long n1, const float* x2, long n2, int pairs, int channels, int rows,
             int columns, int layers, int poolings, const int* windows, double* const* ntk, double* const* nngp, long stride,
             int train_first, int train_last, int threads, const volatile int* stop, long* again) {
    Call call(threads, stop);
    *again = 0;
    try {
        const Shape shape{channels, rows, columns, layers};
        std::vector<uint8_t> read(layers);
        for (int slot = 0; slot < poolings * layers; slot++) read[slot % layers] |= ntk[slot] || nngp[slot];
        const bool any = std::any_of(ntk, ntk + poolings * layers, [](const double* matrix) { return matrix; });
        const Job job{layers, read.data(), train_first != 0, any, poolings, windows};
        const double pixels = (double)shape.pixels();
        std::vector<double> shares;
        for (int pooling = 0; pooling < poolings; pooling++) {
            const double side = 2.0 * windows[pooling] + 1;
            shares.push_back(windows[pooling] != EVERY_PAIR ? side * side * side * side : is_pooled ? pixels * pixels : 1.0);
        }
        const Output out{ntk, nngp, layers, stride, pairs == LOWER, train_last != 0, shares.data()};
        if (pairs == SELF && is_pooled)
            self_pairs(call, x1, n1, shape, job, out, [&] { return Pooled(shape, job); },
                       [](Pooled& tools, const Images& images, long i, double* to) {
                           tools.take_second(images, i);
                           tools.pair(images, i, images, i, to);
                       });
        else if (pairs == SELF)
            self_pairs(call, x1, n1, shape, job, out, [&] { return ZeroOffset(shape, job); },
                       [&](ZeroOffset& tools, const Images& images, long i, double* to) { tools(images, i, images, i, job, to); });
        else if (is_pooled)
            panels(call, x1, n1, x2, n2, shape, 1, job, out, [](auto&... given) { return pooled(given...), 0L; });
        else
            *again = panels(call, x1, n1, x2, n2, shape, shape.packed(), job, out, vanilla);
    } catch (const std::exception&) {
        return NO_MEMORY;
    }
    return call.status();
}

// As ntk_cntk, one matrix each, of the Myrtle network with so many convolutions in each of LEVELS blocks. deviations1,
// deviations2: sqrt(S[p, p]) of every image with itself before each activation, (n, all layers and pixels); again: how many
// pairs were equal or nearly equal and so computed in double.
int ntk_myrtle(const float* x1, const double* deviations1, long n1, const float* x2, const double* deviations2, long n2,
               int pairs, int channels, int rows, int columns, const int* blocks, double* ntk, double* nngp, long stride,
               int train_first, int train_last, int threads, const volatile int* stop, long* again) {
    Call call(threads, stop);
    *again = 0;
    try {
        const MyrtleJob job{blocks, train_first != 0, ntk != nullptr};
        const std::vector<Shape> shapes = level_shapes({channels, rows, columns, blocks[0]}, job);
        const double pixels = (double)shapes[LEVELS - 1].pixels(), share = pixels * pixels;
        const Output out{&ntk, &nngp, 1, stride, pairs == LOWER, train_last != 0, &share};
        const long panel = panel_images(shapes[0], 1);
        for (long i = 0; i < n1 && call.goes_on(); i += panel) {
            if (pairs == SELF) {
                const LevelImages images(call, x1, deviations1, i, std::min(panel, n1 - i), shapes);
                call.parallel(images.count, [&] { return ExactMyrtle(shapes, job); }, [&](ExactMyrtle& tools, long k) {
                    double sums[2];
                    tools(images, k, images, k, sums);
                    out.put(0, 0, i + k, sums[0], sums[1]);
                });
                continue;
            }
            const LevelImages first(call, x1, deviations1, i, std::min(panel, n1 - i), shapes);
            for (long j = 0; j < n2 && call.goes_on(); j += panel) {
                if (!out.wanted(std::min(i + panel, n1) - 1, j)) break;
                const bool same = pairs == LOWER && i == j;
                const std::unique_ptr<LevelImages> other(
                    same ? nullptr : new LevelImages(call, x2, deviations2, j, std::min(panel, n2 - j), shapes));
                *again += myrtle(call, first, same ? first : *other, shapes, job, out);
            }
        }
    } catch (const std::exception&) {
        return NO_MEMORY;
    }
    return call.status();
}

// Multiply-adds done by one thread that does nothing else; timing a call gives the limit that speed is measured against.
// Each chain has a name of its own: a compiler keeps an array of them in memory and measures its loads instead.
double ntk_multiply_adds(long rounds) {
    constexpr int chains = 10;  // enough to hide the latency of two units
    const vec a = vec{} + 0.999f, b = vec{} + 0.001f;
    vec p = b, q = b, r = b, s = b, t = b, u = b, v = b, w = b, x = b, y = b;
    for (long round = 0; round < rounds; round++) {
        p = p * a + b, q = q * a + b, r = r * a + b, s = s * a + b, t = t * a + b;
        u = u * a + b, v = v * a + b, w = w * a + b, x = x * a + b, y = y * a + b;
        __asm__ volatile("" : NTK_REGISTER(p), NTK_REGISTER(q), NTK_REGISTER(r), NTK_REGISTER(s), NTK_REGISTER(t));
        __asm__ volatile("" : NTK_REGISTER(u), NTK_REGISTER(v), NTK_REGISTER(w), NTK_REGISTER(x), NTK_REGISTER(y));
    }
    return (double)rounds * chains * WIDTH;
}
}
