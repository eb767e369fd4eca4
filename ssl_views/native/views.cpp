// Renders one view from its record, end to end in cache: crop-resize and flip, colour, grayscale,
// blur, solarize, normalize, store. The build compiles this file once per instruction set, with
// ISA (a name) and LANES (floats per vector) defined; dispatch.cpp chooses at run time.
//
// Vectors are those of GCC and Clang, so the source is the same for every processor. Everything is
// in an anonymous namespace and no function of the standard library's templates is used: one that is
// compiled for AVX-512 must never be linked into the others.
//
// Crop-resize and blur are both a separable linear map, applied to four rows at a time:
//   down:   every output row is a weighted sum of source rows. The four results are stored
//           interleaved, so that a pixel's four rows lie side by side.
//   across: a vector holds LANES / 4 output columns of four rows. The four rows of each source
//           column are repeated over a vector and multiplied by its weights for these columns.
#include "views.h"

#include <math.h>
#include <string.h>

#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

// Loops over a few vectors, which must be unrolled early to live in registers.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t UintVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));

const int ROWS = 4;                // in flight
const int WIDE = 4;                // vectors side by side in `down`
const int COLUMNS = LANES / ROWS;  // of a vector in `across`
const size_t LARGE_BATCH = 8 << 20;  // bytes
const float BLUR_CUTOFF = 5e-7f;     // weights of the blur below this are left out

template <class T> inline T load(const void* from) {
  T value;
  memcpy(&value, from, sizeof(T));
  return value;
}
template <class T> inline void store(void* to, T value) { memcpy(to, &value, sizeof(T)); }
inline Vec all(float x) { return x - Vec{}; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec magnitude(Vec a) { return (Vec)((IntVec)a & 0x7fffffff); }
inline Vec clamp(Vec a) { return smaller(larger(a, Vec{}), all(1)); }
inline int lesser(int a, int b) { return a < b ? a : b; }
inline int greater(int a, int b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// What compilers do not find by themselves, and its plain meaning. The build turns contraction off,
// so that a product and a sum are fused here only, and weights are computed as torch computes them.
#if defined(__AVX512F__)
inline Vec fma(Vec a, Vec b, Vec c) {
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline Vec from_bytes(const uint8_t* from) {
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
}
inline ByteVec to_bytes(IntVec v) { return (ByteVec)_mm512_cvtepi32_epi8((__m512i)v); }
inline HalfVec to_halves(UintVec v) { return (HalfVec)_mm512_cvtepi32_epi16((__m512i)v); }
inline void stream(char* to, Vec v) { _mm512_stream_ps((float*)to, (__m512)v); }
inline void stream(char* to, HalfVec v) { _mm256_stream_si256((__m256i*)to, (__m256i)v); }
inline void stream(char* to, ByteVec v) { _mm_stream_si128((__m128i*)to, (__m128i)v); }
inline Vec repeat4(const float* from) { return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(from)); }
#else
inline ByteVec to_bytes(IntVec v) { return __builtin_convertvector(v, ByteVec); }
inline HalfVec to_halves(UintVec v) { return __builtin_convertvector(v, HalfVec); }
template <class T> inline void stream(char* to, T v) { store(to, v); }
#if defined(__AVX2__)
inline Vec fma(Vec a, Vec b, Vec c) {
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline Vec from_bytes(const uint8_t* from) {
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
inline void stream(char* to, Vec v) { _mm256_stream_ps((float*)to, (__m256)v); }
inline Vec repeat4(const float* from) { return (Vec)_mm256_broadcast_ps((const __m128*)from); }
#else
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
#if defined(__SSE2__)
inline Vec from_bytes(const uint8_t* from) {
  const __m128i zero = _mm_setzero_si128(), bytes = _mm_cvtsi32_si128(load<int32_t>(from));
  return (Vec)_mm_cvtepi32_ps(_mm_unpacklo_epi16(_mm_unpacklo_epi8(bytes, zero), zero));
}
#else
inline Vec from_bytes(const uint8_t* from) {
  return __builtin_convertvector(__builtin_convertvector(load<ByteVec>(from), IntVec), Vec);
}
#endif
inline Vec repeat4(const float* from) { return load<Vec>(from); }  // LANES is 4
#endif
#endif

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
// In every block of four lanes: alternately n lanes of a and of b, from the first half or the second.
constexpr Lanes zip(int n, bool second) {
  return lanes_of([=](int i) {
    return i / n % 2 * LANES + i / 4 * 4 + (second ? 2 : 0) + i % 4 / (2 * n) * n + i % n;
  });
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

// Transposes every block of four lanes of four vectors; its own inverse.
inline void transpose(Vec* v) {
#if defined(__AVX512F__)  // the same shuffles, which GCC does not find
  const __m512 a = _mm512_unpacklo_ps((__m512)v[0], (__m512)v[1]);
  const __m512 b = _mm512_unpackhi_ps((__m512)v[0], (__m512)v[1]);
  const __m512 c = _mm512_unpacklo_ps((__m512)v[2], (__m512)v[3]);
  const __m512 d = _mm512_unpackhi_ps((__m512)v[2], (__m512)v[3]);
  v[0] = (Vec)_mm512_unpacklo_pd((__m512d)a, (__m512d)c);
  v[1] = (Vec)_mm512_unpackhi_pd((__m512d)a, (__m512d)c);
  v[2] = (Vec)_mm512_unpacklo_pd((__m512d)b, (__m512d)d);
  v[3] = (Vec)_mm512_unpackhi_pd((__m512d)b, (__m512d)d);
#else
  const Vec a = shuffle<ZIP1A>(v[0], v[1]), b = shuffle<ZIP1B>(v[0], v[1]);
  const Vec c = shuffle<ZIP1A>(v[2], v[3]), d = shuffle<ZIP1B>(v[2], v[3]);
  v[0] = shuffle<ZIP2A>(a, c), v[1] = shuffle<ZIP2B>(a, c);
  v[2] = shuffle<ZIP2A>(b, d), v[3] = shuffle<ZIP2B>(b, d);
#endif
}

// Rows of floats are kept in an order in which `transpose` turns four rows of LANES columns into
// LANES columns of four rows each, the columns in their natural order, and back: lane i of block b
// holds column COLUMNS * i + b. Only what reads and writes pixels reorders.
constexpr int place_of(int column) { return column % COLUMNS * 4 + column / COLUMNS; }
constexpr Lanes REORDER = lanes_of([](int i) { return COLUMNS * (i % 4) + i / 4; });
constexpr Lanes NATURAL = lanes_of([](int i) { return place_of(i); });

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
  x = magnitude(x);
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

// The weights of `across`. A block of LANES output columns has ROWS parts of COLUMNS each; every
// part looks at `count` source columns from its own first one on.
struct Bands {
  int* first;      // (blocks, ROWS)
  int* count;      // (blocks,)
  float** weight;  // (blocks,) of (count, ROWS, LANES)
};

// Where output column x of a block puts its weight for the k-th source column of its part.
inline float* place(float* weight, int x, int k) {
  return weight + ((size_t)k * ROWS + x / COLUMNS) * LANES + x % COLUMNS * ROWS;
}

void resize_bands(Bands& bands, float* weight, const Taps& taps, int length, int size, bool flip) {
  const int padded = (int)round_up(size, LANES);
  for (int start = 0, block = 0; start < size; start += LANES, block++) {
    int* first = bands.first + block * ROWS;
    int most = 0;
    for (int part = 0; part < ROWS; part++) {
      const int low = start + part * COLUMNS, high = lesser(low + COLUMNS, size) - 1;
      first[part] = 0;
      if (high < low) continue;
      first[part] = taps.first[flip ? size - 1 - high : low];
      const int last = flip ? size - 1 - low : high;
      most = greater(most, taps.first[last] + taps.count[last] - first[part]);
    }
    for (int part = 0; part < ROWS; part++) first[part] = lesser(first[part], length - most);
    memset(weight, 0, (size_t)most * ROWS * LANES * sizeof(float));
    for (int x = 0; x < LANES && start + x < size; x++) {
      const int from = flip ? size - 1 - start - x : start + x;
      const int skip = taps.first[from] - first[x / COLUMNS];
      for (int k = 0; k < taps.count[from]; k++) {
        const float w = taps.weight[(size_t)k * padded + from];
        for (int r = 0; r < ROWS; r++) place(weight, x, skip + k)[r] = w;
      }
    }
    bands.count[block] = most, bands.weight[block] = weight;
    weight += (size_t)most * ROWS * LANES;
  }
}

inline int reflect(int i, int size) {
  i = i < 0 ? -i : i;
  return greater(i < size ? i : 2 * size - 2 - i, 0);
}

// A blur of radius R that reflects at the borders; `kernel` points at its centre.
void blur_bands(Bands& bands, float* weight, const float* kernel, int radius, int size) {
  float* interior = nullptr;  // blocks that touch no border share their weights
  const int count = lesser(COLUMNS + 2 * radius, size);
  for (int start = 0, block = 0; start < size; start += LANES, block++) {
    const bool inside = start >= radius && start + LANES + radius <= size;
    int* first = bands.first + block * ROWS;
    for (int part = 0; part < ROWS; part++)
      first[part] = lesser(greater(start + part * COLUMNS - radius, 0), size - count);
    bands.count[block] = count;
    bands.weight[block] = inside && interior ? interior : weight;
    if (inside && interior) continue;
    if (inside) interior = weight;
    memset(weight, 0, (size_t)count * ROWS * LANES * sizeof(float));
    for (int x = 0; x < LANES && start + x < size; x++)
      for (int k = -radius; k <= radius; k++) {
        const int column = reflect(start + x + k, size);
        float* to = place(weight, x, column - first[x / COLUMNS]);
        for (int r = 0; r < ROWS; r++) to[r] += kernel[k];
      }
    weight += (size_t)count * ROWS * LANES;
  }
}

// ------------------------------------------------------------------------------- down and across
// Four output rows, BLOCK vectors of bytes wide.
template <int BLOCK>
inline void down_block(const uint8_t* pixels, size_t stride, const Taps& taps, int padded,
                       const int* rows, float* to) {
  Vec sum[BLOCK][ROWS];
  UNROLL for (int r = 0; r < ROWS; r++) {
    const int y = rows[r];
    const uint8_t* from = pixels + taps.first[y] * stride;
    const float* weight = taps.weight + y;
    Vec s[BLOCK] = {};
    for (int k = 0; k < taps.count[y]; k++, from += stride, weight += padded) {
      const Vec w = all(*weight);
      UNROLL for (int b = 0; b < BLOCK; b++) s[b] = fma(from_bytes(from + b * LANES), w, s[b]);
    }
    UNROLL for (int b = 0; b < BLOCK; b++) sum[b][r] = shuffle<REORDER>(s[b], s[b]);
  }
  UNROLL for (int b = 0; b < BLOCK; b++) {
    transpose(sum[b]);
    UNROLL for (int i = 0; i < ROWS; i++) store(to + (b * ROWS + i) * LANES, sum[b][i]);
  }
}

// Four output rows from bytes: `to` gets (columns, ROWS).
void down_bytes(const uint8_t* pixels, size_t stride, int columns, const Taps& taps, int padded,
                const int* rows, float* to) {
  int x = 0;
  for (; x + WIDE * LANES <= columns; x += WIDE * LANES)
    down_block<WIDE>(pixels + x, stride, taps, padded, rows, to + (size_t)x * ROWS);
  for (; x + LANES <= columns; x += LANES)
    down_block<1>(pixels + x, stride, taps, padded, rows, to + (size_t)x * ROWS);
  if (x < columns && columns >= LANES) {  // a last vector that overlaps the one before
    x = columns - LANES;
    down_block<1>(pixels + x, stride, taps, padded, rows, to + (size_t)x * ROWS);
    return;
  }
  for (; x < columns; x++)
    for (int r = 0; r < ROWS; r++) {
      const int y = rows[r];
      float sum = 0;
      for (int k = 0; k < taps.count[y]; k++)
        sum += pixels[(taps.first[y] + k) * stride + x] * taps.weight[(size_t)k * padded + y];
      to[x * ROWS + r] = sum;
    }
}

// One block of LANES output columns and ROWS rows, of CHANNELS channels.
template <int CHANNELS>
inline void across_block(const float* from, int pixel_stride, int channel_stride,
                         const Bands& bands, int block, float* to, size_t plane, int row_stride,
                         bool clamped) {
  Vec sum[CHANNELS][ROWS] = {};
  const float* at[ROWS];
  for (int part = 0; part < ROWS; part++)
    at[part] = from + (size_t)bands.first[block * ROWS + part] * pixel_stride;
  const float* weight = bands.weight[block];
  for (int k = bands.count[block]; k > 0; k--) {
    UNROLL for (int part = 0; part < ROWS; part++) {
      const Vec w = load<Vec>(weight + part * LANES);
      UNROLL for (int c = 0; c < CHANNELS; c++)
        sum[c][part] = fma(w, repeat4(at[part] + c * channel_stride), sum[c][part]);
      at[part] += pixel_stride;
    }
    weight += ROWS * LANES;
  }
  UNROLL for (int c = 0; c < CHANNELS; c++) {
    transpose(sum[c]);
    UNROLL for (int r = 0; r < ROWS; r++)
      store(to + c * plane + r * row_stride, clamped ? clamp(sum[c][r]) : sum[c][r]);
  }
}

// Four rows of all channels: planes `plane` floats apart, rows `padded` apart.
void across(const float* from, int pixel_stride, int channel_stride, int channels,
            const Bands& bands, int padded, float* to, size_t plane, bool clamped) {
  for (int x = 0, block = 0; x < padded; x += LANES, block++) {
    if (channels == 3) {
      across_block<3>(from, pixel_stride, channel_stride, bands, block, to + x, plane, padded,
                      clamped);
      continue;
    }
    for (int c = 0; c < channels; c++)
      across_block<1>(from + (size_t)c * channel_stride, pixel_stride, 0, bands, block,
                      to + c * plane + x, plane, padded, clamped);
  }
}

// Four rows of one plane, each the blur of 2 R + 1 rows around it: `to` gets (columns, ROWS).
// `weight` has ROWS - 1 zeros before and after the kernel.
template <int BLOCK>
inline void blur_block(const float* const* rows, int num_rows, int x, const float* weight,
                       float* to) {
  Vec sum[BLOCK][ROWS] = {};
  for (int j = 0; j < num_rows; j++)
    UNROLL for (int b = 0; b < BLOCK; b++) {
      const Vec v = load<Vec>(rows[j] + x + b * LANES);
      UNROLL for (int r = 0; r < ROWS; r++)
        sum[b][r] = fma(v, all(weight[ROWS - 1 + j - r]), sum[b][r]);
    }
  UNROLL for (int b = 0; b < BLOCK; b++) {
    transpose(sum[b]);
    UNROLL for (int i = 0; i < ROWS; i++)
      store(to + (size_t)x * ROWS + (b * ROWS + i) * LANES, sum[b][i]);
  }
}

void down_blur(const float* const* rows, int num_rows, int padded, const float* weight, float* to) {
  int x = 0;
  for (; x + WIDE * LANES <= padded; x += WIDE * LANES)
    blur_block<WIDE>(rows, num_rows, x, weight, to);
  for (; x < padded; x += LANES) blur_block<1>(rows, num_rows, x, weight, to);
}

// ------------------------------------------------------------------------------------------ colour
struct Step {
  int operation;
  float factor, offset;
  float weight[3];  // of hue
};
const int GRAYSCALE = 4;

inline Vec luma(Vec r, Vec g, Vec b) {
  return fma(r, all(0.2989f), fma(g, all(0.587f), b * 0.114f));
}

inline void blend(Vec& v, float factor, Vec other) { v = fma(v, all(factor), other); }

// Turning the hue needs no angle. With t in [0, 1] sixths of the circle, and m and M the smallest and
// largest channel, red becomes r - g + (2 t - 1) b + (1 - t) (m + M), clamped to [m, M], and so on
// cyclically: both sides are linear in the hue between its corners, and equal there. Backwards, g
// and b change places; a third of the circle moves the channels on by one.
Step hue_step(float turns) {
  const float sixths = 6 * turns;
  const int thirds = (int)lrintf(sixths / 2);
  const float rest = sixths - 2 * thirds;
  const float weight[3] = {1, rest < 0 ? -2 * rest - 1 : -1.f, rest > 0 ? 2 * rest - 1 : -1.f};
  Step step = {HUE, 0, 1 - fabsf(rest), {}};
  for (int i = 0; i < 3; i++) step.weight[i] = weight[(i + thirds + 3) % 3];
  return step;
}

inline void shift_hue(Vec& r, Vec& g, Vec& b, const Step& step) {
  const Vec most = larger(r, larger(g, b)), least = smaller(r, smaller(g, b));
  const Vec both = (most + least) * step.offset;
  const Vec own = all(step.weight[0]), next = all(step.weight[1]), after = all(step.weight[2]);
  const Vec red = fma(r, own, fma(g, next, fma(b, after, both)));
  const Vec green = fma(g, own, fma(b, next, fma(r, after, both)));
  const Vec blue = fma(b, own, fma(r, next, fma(g, after, both)));
  r = smaller(larger(red, least), most);
  g = smaller(larger(green, least), most);
  b = smaller(larger(blue, least), most);
}

// Steps on PAIR vectors of RGB pixels, in registers; returns the sum of their luma if asked to.
template <int PAIR>
inline Vec color_block(float* red, float* green, float* blue, const Step* steps, int num_steps,
                       bool summed) {
  Vec r[PAIR], g[PAIR], b[PAIR];
  UNROLL for (int i = 0; i < PAIR; i++) {
    r[i] = load<Vec>(red + i * LANES);
    g[i] = load<Vec>(green + i * LANES);
    b[i] = load<Vec>(blue + i * LANES);
  }
  for (int s = 0; s < num_steps; s++) {
    const float f = steps[s].factor, offset = steps[s].offset;
    switch (steps[s].operation) {
      case BRIGHTNESS:
      case CONTRAST:
        UNROLL for (int i = 0; i < PAIR; i++)
          blend(r[i], f, all(offset)), blend(g[i], f, all(offset)), blend(b[i], f, all(offset));
        break;
      case SATURATION:
        UNROLL for (int i = 0; i < PAIR; i++) {
          const Vec gray = luma(r[i], g[i], b[i]) * offset;
          blend(r[i], f, gray), blend(g[i], f, gray), blend(b[i], f, gray);
        }
        break;
      case HUE:
        UNROLL for (int i = 0; i < PAIR; i++) shift_hue(r[i], g[i], b[i], steps[s]);
        break;
      case GRAYSCALE:
        UNROLL for (int i = 0; i < PAIR; i++) r[i] = g[i] = b[i] = luma(r[i], g[i], b[i]);
    }
    if (f > 1)  // below, the result lies between two values in [0, 1]
      UNROLL for (int i = 0; i < PAIR; i++)
        r[i] = clamp(r[i]), g[i] = clamp(g[i]), b[i] = clamp(b[i]);
  }
  Vec sum = {};
  UNROLL for (int i = 0; i < PAIR; i++) {
    if (summed) sum += luma(r[i], g[i], b[i]);
    store(red + i * LANES, r[i]), store(green + i * LANES, g[i]), store(blue + i * LANES, b[i]);
  }
  return sum;
}

double color_rgb(float* red, float* green, float* blue, int count, const Step* steps,
                 int num_steps, bool summed) {
  Vec sum = {};
  int i = 0;
  for (; i + 2 * LANES <= count; i += 2 * LANES)
    sum += color_block<2>(red + i, green + i, blue + i, steps, num_steps, summed);
  if (i < count) sum += color_block<1>(red + i, green + i, blue + i, steps, num_steps, summed);
  double total = 0;
  for (int lane = 0; lane < LANES; lane++) total += sum[lane];
  return total;
}

// The same for one plane of any other number of channels, where every step is a factor and an
// offset: brightness and contrast.
double color_plane(float* plane, int count, const Step* steps, int num_steps) {
  Vec sum = {};
  for (int i = 0; i < count; i += LANES) {
    Vec v = load<Vec>(plane + i);
    for (int s = 0; s < num_steps; s++) v = clamp(fma(v, all(steps[s].factor), all(steps[s].offset)));
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
  int size, channels, dtype, value_bytes;
  bool channels_last, solarize;
  bool past_cache;  // written around the caches, which a large batch would only sweep
  const float *scale, *shift;
  char* views;
};

inline Vec finish(Vec v, const Output& out, int channel) {
  if (out.solarize) v = v >= 0.5f ? 1 - v : v;
  return fma(v, all(out.scale[channel]), all(out.shift[channel]));
}

template <class T> inline void write(char* to, T v, const Output& out) {
  if (out.past_cache && (uintptr_t)to % sizeof(T) == 0)
    stream(to, v);
  else
    store(to, v);
}

inline void put(char* to, Vec v, const Output& out) {
  if (out.dtype == FLOAT32) {
    write(to, v, out);
  } else if (out.dtype == BFLOAT16) {  // round to nearest, ties to even
    UintVec bits = load<UintVec>(&v);
    bits += 0x7fff + (bits >> 16 & 1);
    write(to, to_halves(bits >> 16), out);
  } else {
    write(to, to_bytes(__builtin_convertvector(v, IntVec)), out);
  }
}

inline void put_some(char* to, Vec v, const Output& out, int count) {
  alignas(sizeof(Vec)) char lanes[sizeof(Vec) + 1];  // at 1 never aligned as `stream` needs it
  put(lanes + 1, v, out);
  memcpy(to, lanes + 1, (size_t)count * out.value_bytes);
}

inline Vec natural(const float* row) {
  const Vec v = load<Vec>(row);
  return shuffle<NATURAL>(v, v);
}

// Vector k of three, of LANES pixels written as r g b r g b ...
constexpr Lanes red_green(int k) {
  return lanes_of([=](int i) {
    const int t = k * LANES + i;
    return t % 3 == 2 ? 0 : place_of(t / 3) + t % 3 * LANES;
  });
}
constexpr Lanes and_blue(int k) {
  return lanes_of([=](int i) {
    const int t = k * LANES + i;
    return t % 3 == 2 ? LANES + place_of(t / 3) : i;
  });
}
constexpr Lanes RG0 = red_green(0), RG1 = red_green(1), RG2 = red_green(2);
constexpr Lanes B0 = and_blue(0), B1 = and_blue(1), B2 = and_blue(2);

void store_row(const float* row, size_t plane, const Output& out, int y) {
  const int size = out.size, channels = out.channels;
  const size_t width = out.value_bytes;
  if (!out.channels_last || channels == 1) {
    for (int c = 0; c < channels; c++) {
      char* to = out.views + ((size_t)c * size + y) * size * width;
      int x = 0;
      for (; x + LANES <= size; x += LANES)
        put(to + x * width, finish(natural(row + c * plane + x), out, c), out);
      if (x < size)
        put_some(to + x * width, finish(natural(row + c * plane + x), out, c), out, size - x);
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
          put(to, mixed[k], out);
        else
          put_some(to, mixed[k], out, left);
      }
    }
    return;
  }
  for (int c = 0; c < channels; c++)
    for (int x = 0; x < size; x += LANES) {
      const Vec v = finish(natural(row + c * plane + x), out, c);
      for (int i = 0; i < LANES && x + i < size; i++)
        put_some(to + ((size_t)(x + i) * channels + c) * width, all(v[i]), out, 1);
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
  const size_t padded = (size_t)round_up(size, LANES), blocks = padded / LANES;
  const size_t radius = (size_t)kernel_size / 2, reach = 2 * radius + ROWS;
  Workspace w;
  w.down.most = most_taps(height, size, bicubic), w.over.most = most_taps(width, size, bicubic);
  Taps* both[2] = {&w.down, &w.over};
  for (Taps* taps : both) {
    taps->first = scratch.take<int>(padded), taps->count = scratch.take<int>(padded);
    taps->weight = scratch.take<float>(padded * taps->most);
  }
  w.bands.first = scratch.take<int>(blocks * ROWS), w.bands.count = scratch.take<int>(blocks);
  w.bands.weight = scratch.take<float*>(blocks);
  // A part spans the taps of one output and, for each of the others, a step of the source.
  const size_t step = (size_t)ceilf((float)width / size) + 1;
  const size_t span = (size_t)w.over.most + (COLUMNS - 1) * step;
  w.band_weights = scratch.take<float>(padded * ROWS * (span > reach ? span : reach));
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
      steps[num_steps++] = hue_step(factor);
    else
      steps[num_steps++] = {operation, factor, operation == SATURATION ? 1 - factor : 0, {}};
  }
  if (batch.grayscale[view]) steps[num_steps++] = {GRAYSCALE, 0, 0, {}};
  // Contrast needs the mean of the whole view, so the steps from it on have to wait.
  const int before = contrast < 0 ? num_steps : contrast;

  resize_taps(w.down, height, size, bicubic, 1 / 255.f);
  resize_taps(w.over, width, size, bicubic, 1);
  resize_bands(w.bands, w.band_weights, w.over, width, size, batch.flip[view]);
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

  const int value_bytes = batch.dtype == FLOAT32 ? 4 : batch.dtype == BFLOAT16 ? 2 : 1;
  const size_t view_bytes = (size_t)channels * size * size * value_bytes;
  const bool past_cache = view_bytes * batch.num_images * batch.num_views > LARGE_BATCH;
  const Output out = {size, channels, (int)batch.dtype, value_bytes, batch.channels_last != 0,
                      batch.solarize[view] != 0, past_cache, batch.scale, batch.shift,
                      (char*)batch.views + view * view_bytes};
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
