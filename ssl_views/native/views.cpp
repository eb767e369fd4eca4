// Renders one view from its record, end to end in cache: crop-resize and flip, colour, grayscale,
// blur, solarize, normalize, store. The build compiles this file once per instruction set, with
// ISA (a name) and LANES (floats per vector) defined; dispatch.cpp chooses at run time.
//
// Vectors are those of GCC and Clang, so the source is the same for every processor. Everything is
// in an anonymous namespace and nothing of the standard library's templates is used: a function
// compiled for AVX-512 must never be linked into the others.
//
// Crop-resize and blur are both a separable linear map, applied to four rows at a time:
//   down:   every output row is a weighted sum of source rows. The four results are stored
//           interleaved, so that a pixel's four rows lie side by side.
//   across: a vector holds LANES / 4 output columns of four rows. Each source column is broadcast
//           as a block of four rows and multiplied by its weights for these columns.
#include "views.h"

#include <math.h>
#include <string.h>

#include <utility>

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));

const int ROWS = 4;                // rows in flight
const int COLUMNS = LANES / ROWS;  // output columns of a vector in `across`
const float BLUR_CUTOFF = 1e-7f;   // weights of the blur below this are left out

template <class T> inline T load(const void* from) {
  T value;
  memcpy(&value, from, sizeof(T));
  return value;
}
template <class T> inline void store(void* to, T value) { memcpy(to, &value, sizeof(T)); }
inline Vec all(float x) { return x - Vec{}; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec clamp(Vec a) { return smaller(larger(a, Vec{}), all(1)); }
inline int lesser(int a, int b) { return a < b ? a : b; }
inline int greater(int a, int b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline Vec from_bytes(const uint8_t* from) {
  return __builtin_convertvector(__builtin_convertvector(load<ByteVec>(from), IntVec), Vec);
}

// Four floats, repeated over a vector.
inline Vec repeat4(const float* from) {
#if defined(__AVX512F__)
  typedef float Quad __attribute__((vector_size(16)));
  return (Vec)__builtin_ia32_broadcastf32x4_512(load<Quad>(from), Vec{}, (uint16_t)-1);
#else
  Vec v;
  for (int i = 0; i < LANES; i += 4) memcpy((char*)&v + 4 * i, from, 16);
  return v;
#endif
}

// ---------------------------------------------------------------------------------------- shuffles
// Lanes of two vectors a, b are numbered 0 to 2 LANES - 1.
struct Lanes {
  int32_t lane[LANES];
};
template <class F> constexpr Lanes lanes_of(F f) {
  Lanes result{};
  for (int i = 0; i < LANES; i++) result.lane[i] = f(i);
  return result;
}
// Alternately n lanes of a and of b, from the first half of both or from the second.
constexpr Lanes zip(int n, bool second) {
  return lanes_of([=](int i) {
    return i / n % 2 * LANES + i / (2 * n) * n + i % n + (second ? LANES / 2 : 0);
  });
}
// Of every 2 n lanes of a and b in a row, the first n or the last n.
constexpr Lanes unzip(int n, bool last) {
  return lanes_of([=](int i) { return i / n * 2 * n + i % n + (last ? n : 0); });
}
#if defined(__clang__)
template <const Lanes& L, int... I>
inline Vec shuffle(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, L.lane[I]...);
}
template <const Lanes& L> inline Vec shuffle(Vec a, Vec b) {
  return shuffle<L>(a, b, std::make_integer_sequence<int, LANES>{});
}
#else
template <const Lanes& L> inline Vec shuffle(Vec a, Vec b) {
  return __builtin_shuffle(a, b, load<IntVec>(L.lane));
}
#endif
constexpr Lanes ZIP1A = zip(1, false), ZIP1B = zip(1, true);
constexpr Lanes ZIP2A = zip(2, false), ZIP2B = zip(2, true);
constexpr Lanes UNZIP1A = unzip(1, false), UNZIP1B = unzip(1, true);
constexpr Lanes UNZIP2A = unzip(2, false), UNZIP2B = unzip(2, true);

// Four rows of LANES columns -> LANES columns of four rows each.
inline void interleave(const Vec* row, float* to) {
  Vec a = shuffle<ZIP1A>(row[0], row[1]), b = shuffle<ZIP1B>(row[0], row[1]);
  Vec c = shuffle<ZIP1A>(row[2], row[3]), d = shuffle<ZIP1B>(row[2], row[3]);
  store(to, shuffle<ZIP2A>(a, c));
  store(to + LANES, shuffle<ZIP2B>(a, c));
  store(to + 2 * LANES, shuffle<ZIP2A>(b, d));
  store(to + 3 * LANES, shuffle<ZIP2B>(b, d));
}
// The inverse, in registers.
inline void deinterleave(Vec* v) {
  Vec a = shuffle<UNZIP2A>(v[0], v[1]), c = shuffle<UNZIP2B>(v[0], v[1]);
  Vec b = shuffle<UNZIP2A>(v[2], v[3]), d = shuffle<UNZIP2B>(v[2], v[3]);
  v[0] = shuffle<UNZIP1A>(a, b), v[1] = shuffle<UNZIP1B>(a, b);
  v[2] = shuffle<UNZIP1A>(c, d), v[3] = shuffle<UNZIP1B>(c, d);
}

// ----------------------------------------------------------------------------------------- weights
// For every output position: the first source position, how many, and their weights.
struct Taps {
  int most;       // room for weights per output
  int* first;     // (S,)
  int* count;     // (S,)
  float* weight;  // (most, padded S)
};

int most_taps(int length, int size, bool bicubic) {
  const float scale = (float)length / size;
  return (int)ceilf((bicubic ? 2.f : 1.f) * (scale > 1 ? scale : 1)) * 2 + 1;
}

inline Vec kernel(Vec x, bool bicubic) {
  x = larger(x, -x);
  if (!bicubic) return larger(1 - x, Vec{});
  const float a = -0.5f;  // Keys; as every antialiased resize
  const Vec near = ((a + 2) * x - (a + 3)) * x * x + 1;
  const Vec far = (((x - 5) * x + 8) * x - 4) * a;
  return x < all(1) ? near : x < all(2) ? far : Vec{};
}

// Antialiased resize of `length` source positions to `size`, the weights times `gain`.
void resize_taps(Taps& taps, int length, int size, bool bicubic, float gain) {
  const int padded = (int)round_up(size, LANES);
  const float scale = (float)length / size, stretch = scale > 1 ? scale : 1;
  const float support = (bicubic ? 2.f : 1.f) * stretch, shrink = 1 / stretch;
  IntVec lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  for (int start = 0; start < size; start += LANES) {
    const Vec center = scale * (__builtin_convertvector(lane + start, Vec) + 0.5f);
    IntVec first = __builtin_convertvector(center - support + 0.5f, IntVec);
    IntVec end = __builtin_convertvector(center + support + 0.5f, IntVec);
    first = first > 0 ? first : IntVec{};
    end = end < length ? end : IntVec{} + length;
    const Vec start_to_center = __builtin_convertvector(first, Vec) - center + 0.5f;
    Vec sum = {};
    for (int k = 0; k < taps.most; k++) {
      Vec w = kernel((start_to_center + (float)k) * shrink, bicubic);
      w = first + k < end ? w : Vec{};
      store(taps.weight + (size_t)k * padded + start, w);
      sum += w;
    }
    const Vec norm = gain / sum;
    for (int k = 0; k < taps.most; k++) {
      float* w = taps.weight + (size_t)k * padded + start;
      store(w, load<Vec>(w) * norm);
    }
    const IntVec count = end - first;
    for (int i = 0; i < LANES && start + i < size; i++) {
      taps.first[start + i] = first[i];
      taps.count[start + i] = count[i];
    }
  }
}

// The weights of `across`: per vector of output columns, the source columns that matter.
struct Bands {
  int* first;      // (S / COLUMNS,)
  int* count;      // (S / COLUMNS,)
  float** weight;  // (S / COLUMNS,) of (count, LANES)
};

void resize_bands(Bands& bands, float* weight, const Taps& taps, int size, bool flip) {
  const int padded = (int)round_up(size, LANES);
  for (int start = 0, band = 0; start < padded; start += COLUMNS, band++) {
    int first = 0, end = 0;
    if (start < size) {
      const int stop = lesser(start + COLUMNS, size);
      const int low = flip ? size - stop : start, high = flip ? size - 1 - start : stop - 1;
      first = taps.first[low], end = taps.first[high] + taps.count[high];
      memset(weight, 0, (size_t)(end - first) * LANES * sizeof(float));
      for (int x = start; x < stop; x++) {
        const int from = flip ? size - 1 - x : x;
        float* to = weight + (size_t)(taps.first[from] - first) * LANES + (x - start) * ROWS;
        for (int k = 0; k < taps.count[from]; k++, to += LANES) {
          const float w = taps.weight[(size_t)k * padded + from];
          for (int r = 0; r < ROWS; r++) to[r] = w;
        }
      }
    }
    bands.first[band] = first, bands.count[band] = end - first, bands.weight[band] = weight;
    weight += (size_t)(end - first) * LANES;
  }
}

inline int reflect(int i, int size) {
  i = i < 0 ? -i : i;
  return greater(i < size ? i : 2 * size - 2 - i, 0);
}

// A blur of radius R that reflects at the borders; `kernel` points at its centre.
void blur_bands(Bands& bands, float* weight, const float* kernel, int radius, int size) {
  const int padded = (int)round_up(size, LANES);
  float* interior = nullptr;
  for (int start = 0, band = 0; start < padded; start += COLUMNS, band++) {
    const int stop = lesser(start + COLUMNS, size);
    const bool inside = start >= radius && start + COLUMNS + radius <= size;
    const int first = start < size ? greater(start - radius, 0) : 0;
    const int end = start < size ? lesser(stop + radius, size) : 0;
    bands.first[band] = first, bands.count[band] = end - first;
    bands.weight[band] = inside && interior ? interior : weight;
    if (inside && interior) continue;
    if (inside) interior = weight;
    memset(weight, 0, (size_t)(end - first) * LANES * sizeof(float));
    for (int x = start; x < stop; x++)
      for (int k = -radius; k <= radius; k++) {
        float* to = weight + (size_t)(reflect(x + k, size) - first) * LANES + (x - start) * ROWS;
        for (int r = 0; r < ROWS; r++) to[r] += kernel[k];
      }
    weight += (size_t)(end - first) * LANES;
  }
}

// ------------------------------------------------------------------------------- down and across
// Four output rows from bytes: `to` gets (columns, ROWS).
void down_bytes(const uint8_t* pixels, size_t stride, int columns, const Taps& taps, int padded,
                const int* rows, float* to) {
  for (int x = 0; x < columns; x += LANES) {
    if (x + LANES > columns && columns < LANES) {
      for (; x < columns; x++)
        for (int r = 0; r < ROWS; r++) {
          const int y = rows[r];
          float sum = 0;
          for (int k = 0; k < taps.count[y]; k++)
            sum += pixels[(taps.first[y] + k) * stride + x] * taps.weight[(size_t)k * padded + y];
          to[x * ROWS + r] = sum;
        }
      return;
    }
    if (x + LANES > columns) x = columns - LANES;  // the last vector overlaps the one before
    Vec sum[ROWS];
    for (int r = 0; r < ROWS; r++) {
      const int y = rows[r];
      const uint8_t* from = pixels + taps.first[y] * stride + x;
      const float* weight = taps.weight + y;
      Vec s = {};
      for (int k = 0; k < taps.count[y]; k++, from += stride, weight += padded)
        s += from_bytes(from) * *weight;
      sum[r] = s;
    }
    interleave(sum, to + (size_t)x * ROWS);
  }
}

// One block of LANES output columns and ROWS rows, of CHANNELS channels.
template <int CHANNELS>
inline void across_block(const float* from, int pixel_stride, int channel_stride,
                         const Bands& bands, int band, float* to, size_t plane, int row_stride,
                         bool clamped) {
  Vec sums[CHANNELS][ROWS];
  for (int part = 0; part < ROWS; part++, band++) {  // LANES = ROWS * COLUMNS
    Vec sum[CHANNELS] = {};
    const float* at = from + (size_t)bands.first[band] * pixel_stride;
    const float* weight = bands.weight[band];
    for (int k = 0; k < bands.count[band]; k++, at += pixel_stride, weight += LANES) {
      const Vec w = load<Vec>(weight);
      for (int c = 0; c < CHANNELS; c++) sum[c] += w * repeat4(at + c * channel_stride);
    }
    for (int c = 0; c < CHANNELS; c++) sums[c][part] = sum[c];
  }
  for (int c = 0; c < CHANNELS; c++) {
    deinterleave(sums[c]);
    for (int r = 0; r < ROWS; r++)
      store(to + c * plane + r * row_stride, clamped ? clamp(sums[c][r]) : sums[c][r]);
  }
}

// Four rows of all channels: planes `plane` floats apart, rows `padded` apart.
void across(const float* from, int pixel_stride, int channel_stride, int channels,
            const Bands& bands, int padded, float* to, size_t plane, bool clamped) {
  for (int x = 0, band = 0; x < padded; x += LANES, band += ROWS) {
    if (channels == 3) {
      across_block<3>(from, pixel_stride, channel_stride, bands, band, to + x, plane, padded,
                      clamped);
      continue;
    }
    for (int c = 0; c < channels; c++)
      across_block<1>(from + (size_t)c * channel_stride, pixel_stride, 0, bands, band,
                      to + c * plane + x, plane, padded, clamped);
  }
}

// Four rows of one plane, each the blur of 2 R + 1 rows around it: `to` gets (columns, ROWS).
// `weight` has ROWS - 1 zeros before and after the kernel.
void down_blur(const float* const* rows, int num_rows, int padded, const float* weight, float* to) {
  for (int x = 0; x < padded; x += LANES) {
    Vec sum[ROWS] = {};
    for (int j = 0; j < num_rows; j++) {
      const Vec v = load<Vec>(rows[j] + x);
      for (int r = 0; r < ROWS; r++) sum[r] += v * weight[ROWS - 1 + j - r];
    }
    interleave(sum, to + (size_t)x * ROWS);
  }
}

// ------------------------------------------------------------------------------------------ colour
struct Step {
  int operation;
  float factor, offset;
};
const int GRAYSCALE = 4;

inline Vec luma(Vec r, Vec g, Vec b) { return r * 0.2989f + g * 0.587f + b * 0.114f; }

inline void shift_hue(Vec& r, Vec& g, Vec& b, float sixths) {
  const Vec most = larger(r, larger(g, b)), least = smaller(r, smaller(g, b));
  const Vec chroma = most - least;
  const Vec inverse = 1 / (chroma == 0 ? all(1) : chroma);
  const Vec difference = most == r ? g - b : most == g ? b - r : r - g;
  const Vec sector = most == r ? all(0) : most == g ? all(2) : all(4);
  Vec hue = difference * inverse + (sector + sixths);  // in [-4, 8]
  hue = hue < 0 ? hue + 6 : hue;
  hue = hue >= 6 ? hue - 6 : hue;
  const Vec red = hue - 3, green = hue - 2, blue = hue - 4;
  r = least + chroma * clamp(larger(red, -red) - 1);
  g = least + chroma * clamp(2 - larger(green, -green));
  b = least + chroma * clamp(2 - larger(blue, -blue));
}

// Steps on `count` RGB pixels, in registers; returns the sum of the luma after them if asked to.
double color_rgb(float* red, float* green, float* blue, int count, const Step* steps,
                 int num_steps, bool summed) {
  Vec sum = {};
  for (int i = 0; i < count; i += LANES) {
    Vec r = load<Vec>(red + i), g = load<Vec>(green + i), b = load<Vec>(blue + i);
    for (int s = 0; s < num_steps; s++) {
      const float f = steps[s].factor, offset = steps[s].offset;
      switch (steps[s].operation) {
        case BRIGHTNESS:
        case CONTRAST:
          r = clamp(r * f + offset), g = clamp(g * f + offset), b = clamp(b * f + offset);
          break;
        case SATURATION: {
          const Vec gray = luma(r, g, b) * offset;
          r = clamp(r * f + gray), g = clamp(g * f + gray), b = clamp(b * f + gray);
          break;
        }
        case HUE:
          shift_hue(r, g, b, f);
          break;
        case GRAYSCALE:
          r = g = b = luma(r, g, b);
      }
    }
    if (summed) sum += luma(r, g, b);
    store(red + i, r), store(green + i, g), store(blue + i, b);
  }
  double total = 0;
  for (int i = 0; i < LANES; i++) total += sum[i];
  return total;
}

// The same for one plane of any other number of channels: brightness and contrast only.
double color_plane(float* plane, int count, const Step* steps, int num_steps) {
  Vec sum = {};
  for (int i = 0; i < count; i += LANES) {
    Vec v = load<Vec>(plane + i);
    for (int s = 0; s < num_steps; s++) v = clamp(v * steps[s].factor + steps[s].offset);
    sum += v;
    store(plane + i, v);
  }
  double total = 0;
  for (int i = 0; i < LANES; i++) total += sum[i];
  return total;
}

double color(float* at, size_t plane, int channels, int count, const Step* steps, int num_steps,
             bool summed) {
  if (channels == 3)
    return color_rgb(at, at + plane, at + 2 * plane, count, steps, num_steps, summed);
  double sum = 0;
  for (int c = 0; c < channels; c++)
    sum += color_plane(at + c * plane, count, steps, num_steps) / channels;
  return sum;
}

// ------------------------------------------------------------------------------------------- store
struct Output {
  int size, channels, dtype;
  bool channels_last, solarize;
  const float *scale, *shift;
  char* views;
};

inline Vec finish(Vec v, const Output& out, int channel) {
  if (out.solarize) v = v >= 0.5f ? 1 - v : v;
  return out.dtype == UINT8 ? v * 255.f + 0.5f : v * out.scale[channel] + out.shift[channel];
}

inline void put(char* to, Vec v, int dtype) {
  if (dtype == FLOAT32) {
    store(to, v);
  } else if (dtype == BFLOAT16) {  // round to nearest, ties to even
    UintVec bits = load<UintVec>(&v);
    bits += 0x7fff + (bits >> 16 & 1);
    store(to, __builtin_convertvector(bits >> 16, HalfVec));
  } else {
    store(to, __builtin_convertvector(__builtin_convertvector(v, IntVec), ByteVec));
  }
}

inline void put_some(char* to, Vec v, int dtype, int count) {
  char all_lanes[sizeof(Vec)];
  put(all_lanes, v, dtype);
  memcpy(to, all_lanes, (size_t)count * (dtype == FLOAT32 ? 4 : dtype == BFLOAT16 ? 2 : 1));
}

// Vector k of three, of LANES pixels written as r g b r g b ...
constexpr Lanes red_green(int k) {
  return lanes_of([=](int i) {
    const int t = k * LANES + i;
    return t % 3 == 2 ? 0 : t / 3 + t % 3 * LANES;
  });
}
constexpr Lanes and_blue(int k) {
  return lanes_of([=](int i) {
    const int t = k * LANES + i;
    return t % 3 == 2 ? LANES + t / 3 : i;
  });
}
constexpr Lanes RG0 = red_green(0), RG1 = red_green(1), RG2 = red_green(2);
constexpr Lanes B0 = and_blue(0), B1 = and_blue(1), B2 = and_blue(2);

void store_row(const float* row, size_t plane, const Output& out, int y) {
  const int size = out.size, channels = out.channels, dtype = out.dtype;
  const size_t width = dtype == FLOAT32 ? 4 : dtype == BFLOAT16 ? 2 : 1;
  if (!out.channels_last || channels == 1) {
    for (int c = 0; c < channels; c++) {
      char* to = out.views + ((size_t)c * size + y) * size * width;
      int x = 0;
      for (; x + LANES <= size; x += LANES)
        put(to + x * width, finish(load<Vec>(row + c * plane + x), out, c), dtype);
      if (x < size)
        put_some(to + x * width, finish(load<Vec>(row + c * plane + x), out, c), dtype, size - x);
    }
    return;
  }
  char* to = out.views + (size_t)y * size * channels * width;
  if (channels == 3) {
    for (int x = 0; x < size; x += LANES) {
      const Vec r = finish(load<Vec>(row + x), out, 0);
      const Vec g = finish(load<Vec>(row + plane + x), out, 1);
      const Vec b = finish(load<Vec>(row + 2 * plane + x), out, 2);
      const Vec mixed[3] = {shuffle<B0>(shuffle<RG0>(r, g), b), shuffle<B1>(shuffle<RG1>(r, g), b),
                            shuffle<B2>(shuffle<RG2>(r, g), b)};
      int left = 3 * (size - x);
      for (int k = 0; k < 3 && left > 0; k++, left -= LANES, to += LANES * width) {
        if (left >= LANES)
          put(to, mixed[k], dtype);
        else
          put_some(to, mixed[k], dtype, left);
      }
    }
    return;
  }
  for (int c = 0; c < channels; c++)
    for (int x = 0; x < size; x += LANES) {
      const Vec v = finish(load<Vec>(row + c * plane + x), out, c);
      for (int i = 0; i < LANES && x + i < size; i++)
        put_some(to + ((size_t)(x + i) * channels + c) * width, all(v[i]), dtype, 1);
    }
}

// ------------------------------------------------------------------------------------------ a view
// Scratch memory, handed out in order; without memory it only counts.
struct Scratch {
  char* memory;
  size_t used;
  template <class T> T* take(size_t count) {
    T* place = memory ? (T*)(memory + used) : nullptr;
    used += (size_t)round_up((int64_t)(count * sizeof(T)), 64);
    return place;
  }
};

struct Workspace {
  Taps down, over;       // resize
  Bands bands;           // resize, then blur
  float* band_weights;
  float* interleaved;    // (columns x channels, ROWS)
  float* planes;         // (C, rows, padded)
  float* blurred;        // (C, ROWS, padded)
  float* kernel;         // 2 R + 1 weights, ROWS - 1 zeros on both sides
  const float** rows;    // 2 R + ROWS
};

Workspace lay_out(Scratch& scratch, int height, int width, int channels, int size, int kernel_size,
                  bool bicubic) {
  const size_t padded = (size_t)round_up(size, LANES), bands = padded / COLUMNS;
  const size_t radius = (size_t)kernel_size / 2, reach = 2 * radius + ROWS;
  Workspace w;
  w.down.most = most_taps(height, size, bicubic), w.over.most = most_taps(width, size, bicubic);
  Taps* both[2] = {&w.down, &w.over};
  for (Taps* taps : both) {
    taps->first = scratch.take<int>(padded), taps->count = scratch.take<int>(padded);
    taps->weight = scratch.take<float>(padded * taps->most);
  }
  w.bands.first = scratch.take<int>(bands), w.bands.count = scratch.take<int>(bands);
  w.bands.weight = scratch.take<float*>(bands);
  // A band spans the taps of one output and, for each of the others, a step of the source.
  const size_t step = (size_t)ceilf((float)width / size) + 1;
  const size_t span = (size_t)w.over.most + (COLUMNS - 1) * step;
  w.band_weights = scratch.take<float>(bands * (span > reach ? span : reach) * LANES);
  const size_t columns = ((size_t)width > padded ? (size_t)width : padded) * channels;
  w.interleaved = scratch.take<float>(columns * ROWS);
  w.planes = scratch.take<float>((size_t)channels * round_up(size, ROWS) * padded);
  w.blurred = scratch.take<float>((size_t)channels * ROWS * padded);
  w.kernel = scratch.take<float>(reach + ROWS);
  w.rows = scratch.take<const float*>(reach);
  return w;
}

// Fills the kernel and returns its radius, without weights too small to matter.
int blur_kernel(float* kernel, float sigma, int kernel_size) {
  const int half = kernel_size / 2;
  double sum = 1;
  for (int k = 1; k <= half; k++) sum += 2 * exp(-0.5 * (k / (double)sigma) * (k / (double)sigma));
  int radius = half;
  while (radius > 0 &&
         exp(-0.5 * (radius / (double)sigma) * (radius / (double)sigma)) < BLUR_CUTOFF * sum)
    radius--;
  memset(kernel, 0, (size_t)(2 * radius + 2 * ROWS - 1) * sizeof(float));
  for (int k = -radius; k <= radius; k++)
    kernel[ROWS - 1 + radius + k] =
        (float)(exp(-0.5 * (k / (double)sigma) * (k / (double)sigma)) / sum);
  return radius;
}

void render(const SslViewsBatch& batch, int64_t view, char* memory) {
  const int64_t image = view / batch.num_views;
  const int32_t* box = batch.box + 4 * view;
  const int top = box[0], left = box[1], height = box[2], width = box[3];
  const int channels = (int)batch.channels, size = (int)batch.size;
  const int padded = (int)round_up(size, LANES);
  const bool bicubic = batch.bicubic;
  Scratch scratch = {memory, 0};
  Workspace w =
      lay_out(scratch, height, width, channels, size, (int)batch.blur_kernel_size, bicubic);
  const size_t plane = (size_t)round_up(size, ROWS) * padded;

  Step steps[5];
  int num_steps = 0, contrast = -1;
  for (int i = 0; i < 4; i++) {
    const int operation = batch.order[4 * view + i];
    if (operation < 0) continue;
    const float factor = batch.factor[4 * view + operation];
    if (operation == CONTRAST) contrast = num_steps;  // drawn at most once
    if (operation == HUE)
      steps[num_steps++] = {HUE, 6 * factor, 0};
    else
      steps[num_steps++] = {operation, factor, operation == SATURATION ? 1 - factor : 0};
  }
  if (batch.grayscale[view]) steps[num_steps++] = {GRAYSCALE, 0, 0};
  // Contrast needs the mean of the whole view, so the steps from it on have to wait.
  const int before = contrast < 0 ? num_steps : contrast;

  resize_taps(w.down, height, size, bicubic, 1 / 255.f);
  resize_taps(w.over, width, size, bicubic, 1);
  resize_bands(w.bands, w.band_weights, w.over, size, batch.flip[view]);
  const size_t stride = (size_t)batch.widths[image] * channels;
  const uint8_t* pixels = (const uint8_t*)batch.pixels[image] + top * stride + (size_t)left * channels;
  double sum = 0;
  for (int y = 0; y < size; y += ROWS) {
    int rows[ROWS];
    for (int r = 0; r < ROWS; r++) rows[r] = lesser(y + r, size - 1);
    float* at = w.planes + (size_t)y * padded;
    down_bytes(pixels, stride, width * channels, w.down, padded, rows, w.interleaved);
    across(w.interleaved, ROWS * channels, ROWS, channels, w.bands, padded, at, plane, bicubic);
    if (before || contrast >= 0)
      sum += color(at, plane, channels, lesser(ROWS, size - y) * padded, steps, before,
                   contrast >= 0);
  }
  if (contrast >= 0) {
    const float mean = (float)(sum / ((double)size * size));
    steps[contrast].offset = mean * (1 - steps[contrast].factor);
  }
  const bool waiting = before < num_steps;

  const size_t pixel_bytes =
      (size_t)channels * (batch.dtype == FLOAT32 ? 4 : batch.dtype == BFLOAT16 ? 2 : 1);
  Output out = {size, channels, (int)batch.dtype, batch.channels_last != 0,
                batch.solarize[view] != 0, batch.scale, batch.shift,
                (char*)batch.views + (size_t)view * size * size * pixel_bytes};
  const float sigma = batch.blur_sigma[view];
  const int radius = sigma > 0 ? blur_kernel(w.kernel, sigma, (int)batch.blur_kernel_size) : 0;
  if (radius == 0) {
    for (int y = 0; y < size; y += ROWS) {
      const int count = lesser(ROWS, size - y);
      float* at = w.planes + (size_t)y * padded;
      if (waiting)
        color(at, plane, channels, count * padded, steps + before, num_steps - before, false);
      for (int r = 0; r < count; r++) store_row(at + r * padded, plane, out, y + r);
    }
    return;
  }
  if (waiting)
    color(w.planes, plane, channels, size * padded, steps + before, num_steps - before, false);
  blur_bands(w.bands, w.band_weights, w.kernel + ROWS - 1 + radius, radius, size);
  for (int y = 0; y < size; y += ROWS) {
    for (int c = 0; c < channels; c++) {
      for (int j = 0; j < 2 * radius + ROWS; j++)
        w.rows[j] = w.planes + c * plane + (size_t)reflect(y - radius + j, size) * padded;
      down_blur(w.rows, 2 * radius + ROWS, padded, w.kernel,
                w.interleaved + (size_t)c * padded * ROWS);
    }
    across(w.interleaved, ROWS, padded * ROWS, channels, w.bands, padded, w.blurred,
           (size_t)ROWS * padded, false);
    for (int r = 0; r < lesser(ROWS, size - y); r++)
      store_row(w.blurred + r * padded, (size_t)ROWS * padded, out, y + r);
  }
}

}  // namespace

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)

extern "C" {
// Bytes of scratch memory that a view needs.
size_t JOIN(ssl_views_scratch_, ISA)(const SslViewsBatch* batch, int64_t view) {
  Scratch scratch = {nullptr, 0};
  const int32_t* box = batch->box + 4 * view;
  lay_out(scratch, box[2], box[3], (int)batch->channels, (int)batch->size,
          (int)batch->blur_kernel_size, batch->bicubic);
  return scratch.used;
}
void JOIN(ssl_views_render_, ISA)(const SslViewsBatch* batch, int64_t view, char* scratch) {
  render(*batch, view, scratch);
}
}
