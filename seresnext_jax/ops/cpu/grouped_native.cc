// The 3x3 grouped convolution and its two gradients on a CPU: float32, NHWC, padding 1, with equal
// numbers of input and output channels.
//
// XLA's CPU backend has no kernel for it. This one divides the work into slabs: 32 channels of one
// image (two cache lines, which memory delivers faster than one), or one group if a group is
// larger. Each group of a slab is copied, with its zero padding, into an array of its own. So the
// inner loops have no borders and no gaps, and their memory fits the L1 and L2 caches. They
// multiply one element of x by a vector of output channels and keep the sums in registers. One
// thread computes each sum, in a fixed order, so results do not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

constexpr int kTaps = 3;  // the kernel is kTaps x kTaps
constexpr int kPadding = 1;
#ifdef __AVX512F__
constexpr int kWidestVector = 16;
#else
constexpr int kWidestVector = 8;
#endif

// Constants that depend only on kGroup, the number of channels in a group.
template <int kGroup>
struct Layout {
  static constexpr int groups = std::max(32 / kGroup, 1);  // in a slab
  static constexpr int slab = groups * kGroup;             // channels
  static constexpr int lanes = std::min(kGroup, kWidestVector);  // channels in a vector
  static constexpr int vectors = std::min(kGroup / lanes, 2);    // summed at the same time
  static constexpr int kernel = kTaps * kTaps * kGroup * kGroup;
  typedef float Vector __attribute__((vector_size(lanes * sizeof(float))));
};

template <typename Vector>
Vector Load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename Vector>
void Store(Vector value, float* to) {
  std::memcpy(to, &value, sizeof(value));
}

// A view of an array (N, H, W, C).
template <typename Float>
struct Images {
  Float* data;
  int count, height, width, channels;

  Float* Pixel(int n, int h, int w) const {
    return data + ((static_cast<int64_t>(n) * height + h) * width + w) * channels;
  }
};

// Calls work(0), ..., work(count - 1) on the threads of `pool` and on the calling thread. The
// caller can be a thread of the pool itself, so it waits only for tasks that have begun.
template <typename Work>
void ParallelFor(ffi::ThreadPool& pool, int count, const Work& work) {
  struct State {
    std::atomic<int> next{0};
    std::mutex mutex;
    std::condition_variable helper_left;
    int helpers = 0;
  };
  auto state = std::make_shared<State>();
  auto run = [state, count, &work]() noexcept {
    for (int i; (i = state->next++) < count;) work(i);
  };
  for (int64_t i = 1; i < std::min<int64_t>(pool.num_threads(), count); ++i) {
    pool.Schedule([state, count, run] {
      {
        std::lock_guard<std::mutex> lock(state->mutex);
        if (state->next >= count) return;  // the caller may have returned, and `work` with it
        ++state->helpers;
      }
      run();
      std::lock_guard<std::mutex> lock(state->mutex);
      --state->helpers;
      state->helper_left.notify_one();
    });
  }
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->helper_left.wait(lock, [&] { return state->helpers == 0; });
}

// A zero-padded slab of one image: (groups, rows, columns, kGroup).
template <int kGroup>
class Slab {
 public:
  // Resizes to `rows` x `columns` and sets every element to zero.
  void Reset(int rows, int columns) {
    rows_ = rows;
    columns_ = columns;
    values_.assign(static_cast<size_t>(rows) * columns * Layout<kGroup>::slab, 0.0f);
  }

  // Copies the channels of image n from `channel` on: pixel (h, w) goes to row
  // h * dilation + border and column w * dilation + border.
  void Fill(const Images<const float>& images, int n, int channel, int dilation, int border) {
    for (int h = 0; h < images.height; ++h) {
      for (int g = 0; g < Layout<kGroup>::groups; ++g) {
        float* to = values_.data() + Offset(g, h * dilation + border, border);
        const float* from = images.Pixel(n, h, 0) + channel + g * kGroup;
        for (int w = 0; w < images.width; ++w, to += dilation * kGroup, from += images.channels) {
          std::memcpy(to, from, kGroup * sizeof(float));
        }
      }
    }
  }

  const float* Pixel(int group, int row, int column) const {
    return values_.data() + Offset(group, row, column);
  }
  int row_stride() const { return columns_ * kGroup; }

 private:
  size_t Offset(int group, int row, int column) const {
    return ((static_cast<size_t>(group) * rows_ + row) * columns_ + column) * kGroup;
  }

  std::vector<float> values_;
  int rows_ = 0, columns_ = 0;
};

// Rows (or columns) of a slab for a convolution from `in` to `out` pixels with this input dilation
// and stride.
int Extent(int in, int dilation, int out, int stride) {
  return std::max((in - 1) * dilation + 1 + 2 * kPadding, (out - 1) * stride + kTaps);
}

// (3, 3, C / groups, C) -> (groups, 3, 3, C / groups, C / groups). `transposed` gives the kernel of
// the gradient with respect to the input: taps reversed, input and output channels swapped.
template <int kGroup>
std::vector<float> SplitKernel(ffi::ThreadPool& pool, const float* kernel, int channels,
                               bool transposed) {
  std::vector<float> split(static_cast<size_t>(channels / kGroup) * Layout<kGroup>::kernel);
  ParallelFor(pool, channels / kGroup, [&](int g) {
    float* to = split.data() + g * Layout<kGroup>::kernel;
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
      for (int in = 0; in < kGroup; ++in) {
        const float* from = kernel + (tap * kGroup + in) * channels + g * kGroup;
        for (int out = 0; out < kGroup; ++out) {
          int place = transposed ? ((kTaps * kTaps - 1 - tap) * kGroup + out) * kGroup + in
                             : (tap * kGroup + in) * kGroup + out;
          to[place] = from[out];
        }
      }
    }
  });
  return split;
}

// Computes kPixels neighbours in a row of y for one group. Strides are in floats: `x_stride`
// between the inputs of two neighbours, `row_stride` between rows of x, `y_stride` between pixels
// of y.
template <int kGroup, int kPixels>
void ConvolvePixels(const float* x, int row_stride, int x_stride, const float* kernel, float* y,
                    int y_stride) {
  using L = Layout<kGroup>;
  using Vector = typename L::Vector;
  for (int out = 0; out < kGroup; out += L::vectors * L::lanes) {
    Vector sum[kPixels][L::vectors] = {};
    const float* weights = kernel + out;
    for (int i = 0; i < kTaps; ++i) {
      for (int j = 0; j < kTaps; ++j) {
        const float* tap = x + i * row_stride + j * kGroup;
        for (int in = 0; in < kGroup; ++in, weights += kGroup) {
          for (int v = 0; v < L::vectors; ++v) {
            Vector weight = Load<Vector>(weights + v * L::lanes);
#pragma GCC unroll 8
            for (int p = 0; p < kPixels; ++p) sum[p][v] += tap[p * x_stride + in] * weight;
          }
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      for (int v = 0; v < L::vectors; ++v) {
        Store(sum[p][v], y + p * y_stride + out + v * L::lanes);
      }
    }
  }
}

// Computes the channels of image n of y from `channel` on; `x` is the slab of the same channels.
template <int kGroup>
void ConvolveSlab(const Slab<kGroup>& x, int stride, const float* kernels,
                  const Images<float>& y, int n, int channel) {
  using L = Layout<kGroup>;
  constexpr decltype(&ConvolvePixels<kGroup, 1>) convolve[] = {
      ConvolvePixels<kGroup, 1>, ConvolvePixels<kGroup, 2>, ConvolvePixels<kGroup, 3>,
      ConvolvePixels<kGroup, 4>, ConvolvePixels<kGroup, 5>, ConvolvePixels<kGroup, 6>,
      ConvolvePixels<kGroup, 7>, ConvolvePixels<kGroup, 8>};
  constexpr int most = L::vectors == 1 ? 8 : 6;  // 8 or 12 of the 16 registers hold sums
  int steps = (y.width + most - 1) / most;
  int pixels = (y.width + steps - 1) / steps;
  for (int h = 0; h < y.height; ++h) {
    for (int g = 0; g < L::groups; ++g) {
      for (int w = 0; w < y.width; w += pixels) {
        convolve[std::min(pixels, y.width - w) - 1](
            x.Pixel(g, h * stride, w * stride), x.row_stride(), stride * kGroup,
            kernels + g * L::kernel, y.Pixel(n, h, w) + channel + g * kGroup, y.channels);
      }
    }
  }
}

// Convolves x into y; input dilation puts `dilation` - 1 zeros between the pixels of x.
template <int kGroup>
void Convolve(ffi::ThreadPool& pool, const Images<const float>& x, int dilation, int stride,
              const std::vector<float>& kernels, const Images<float>& y) {
  using L = Layout<kGroup>;
  int slabs = x.channels / L::slab;
  ParallelFor(pool, x.count * slabs, [&](int unit) {
    thread_local Slab<kGroup> slab;
    int n = unit / slabs, index = unit % slabs;
    slab.Reset(Extent(x.height, dilation, y.height, stride),
               Extent(x.width, dilation, y.width, stride));
    slab.Fill(x, n, index * L::slab, dilation, kPadding);
    ConvolveSlab<kGroup>(slab, stride, kernels.data() + index * L::groups * L::kernel, y, n,
                         index * L::slab);
  });
}

// Adds one image's share of a group's kernel gradient to `sums` (3, 3, kGroup, kGroup).
// `row_stride`: floats between rows of x. `gradient`: contiguous (height, width, kGroup).
template <int kGroup>
void AddKernelGradient(const float* x, int row_stride, int stride, const float* gradient,
                       int height, int width, float* sums) {
  using L = Layout<kGroup>;
  using Vector = typename L::Vector;
  constexpr int taps = L::vectors == 1 ? kTaps : 1, inputs = 4;  // 12 or 8 sums
  for (int i = 0; i < kTaps; ++i) {
    for (int j = 0; j < kTaps; j += taps) {
      for (int in = 0; in < kGroup; in += inputs) {
        for (int out = 0; out < kGroup; out += L::vectors * L::lanes) {
          Vector sum[taps][inputs][L::vectors] = {};
          const float* from = gradient + out;
          for (int h = 0; h < height; ++h) {
            const float* pixel = x + (h * stride + i) * row_stride + j * kGroup + in;
            for (int w = 0; w < width; ++w, pixel += stride * kGroup, from += kGroup) {
              for (int v = 0; v < L::vectors; ++v) {
                Vector part = Load<Vector>(from + v * L::lanes);
                for (int t = 0; t < taps; ++t) {
                  for (int c = 0; c < inputs; ++c) sum[t][c][v] += pixel[t * kGroup + c] * part;
                }
              }
            }
          }
          for (int t = 0; t < taps; ++t) {
            for (int c = 0; c < inputs; ++c) {
              float* to = sums + ((i * kTaps + j + t) * kGroup + in + c) * kGroup + out;
              for (int v = 0; v < L::vectors; ++v, to += L::lanes) {
                Store(Load<Vector>(to) + sum[t][c][v], to);
              }
            }
          }
        }
      }
    }
  }
}

// Computes the gradient (3, 3, C / groups, C) with respect to the kernel.
template <int kGroup>
void ConvolveForKernel(ffi::ThreadPool& pool, const Images<const float>& x, int stride,
                       const Images<const float>& gradient, float* kernel_gradient) {
  using L = Layout<kGroup>;
  ParallelFor(pool, x.channels / L::slab, [&](int unit) {
    thread_local Slab<kGroup> x_slab, gradient_slab;
    int channel = unit * L::slab;
    x_slab.Reset(Extent(x.height, 1, gradient.height, stride),
                 Extent(x.width, 1, gradient.width, stride));
    gradient_slab.Reset(gradient.height, gradient.width);
    std::vector<float> sums(L::groups * L::kernel, 0.0f);
    for (int n = 0; n < x.count; ++n) {
      x_slab.Fill(x, n, channel, 1, kPadding);
      gradient_slab.Fill(gradient, n, channel, 1, 0);
      for (int g = 0; g < L::groups; ++g) {
        AddKernelGradient<kGroup>(x_slab.Pixel(g, 0, 0), x_slab.row_stride(), stride,
                                  gradient_slab.Pixel(g, 0, 0), gradient.height, gradient.width,
                                  sums.data() + g * L::kernel);
      }
    }
    for (int g = 0; g < L::groups; ++g) {
      for (int row = 0; row < kTaps * kTaps * kGroup; ++row) {
        std::memcpy(kernel_gradient + row * x.channels + channel + g * kGroup,
                    sums.data() + g * L::kernel + row * kGroup, kGroup * sizeof(float));
      }
    }
  });
}

using Array = ffi::Buffer<ffi::F32, 4>;
using Result = ffi::ResultBuffer<ffi::F32, 4>;

Images<const float> ImagesOf(const Array& array) {
  auto shape = array.dimensions();
  return {array.typed_data(), static_cast<int>(shape[0]), static_cast<int>(shape[1]),
          static_cast<int>(shape[2]), static_cast<int>(shape[3])};
}

Images<float> ImagesOf(Result& array) {
  auto shape = array->dimensions();
  return {array->typed_data(), static_cast<int>(shape[0]), static_cast<int>(shape[1]),
          static_cast<int>(shape[2]), static_cast<int>(shape[3])};
}

// Calls function(std::integral_constant<int, group>()).
template <typename Function>
ffi::Error ForGroup(int64_t group, const Function& function) {
  switch (group) {
    case 4: function(std::integral_constant<int, 4>()); break;
    case 8: function(std::integral_constant<int, 8>()); break;
    case 16: function(std::integral_constant<int, 16>()); break;
    case 32: function(std::integral_constant<int, 32>()); break;
    case 64: function(std::integral_constant<int, 64>()); break;
    default: return ffi::Error::InvalidArgument("a group has 4, 8, 16, 32 or 64 channels");
  }
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t stride) {
  return ForGroup(kernel.dimensions()[2], [&](auto group) {
    auto kernels = SplitKernel<group()>(pool, kernel.typed_data(), x.dimensions()[3], false);
    Convolve<group()>(pool, ImagesOf(x), 1, stride, kernels, ImagesOf(y));
  });
}

ffi::Error InputGradient(ffi::ThreadPool pool, Array gradient, Array kernel, Result x_gradient,
                         int64_t stride) {
  return ForGroup(kernel.dimensions()[2], [&](auto group) {
    auto kernels = SplitKernel<group()>(pool, kernel.typed_data(), kernel.dimensions()[3], true);
    Convolve<group()>(pool, ImagesOf(gradient), stride, 1, kernels, ImagesOf(x_gradient));
  });
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Array x, Array gradient, Result kernel_gradient,
                          int64_t stride) {
  return ForGroup(kernel_gradient->dimensions()[2], [&](auto group) {
    ConvolveForKernel<group()>(pool, ImagesOf(x), stride, ImagesOf(gradient),
                               kernel_gradient->typed_data());
  });
}

auto Signature() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>().Attr<
      int64_t>("stride");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(grouped_forward, Forward, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(grouped_input_gradient, InputGradient, Signature());
XLA_FFI_DEFINE_HANDLER_SYMBOL(grouped_kernel_gradient, KernelGradient, Signature());
