// The interface between the binding (native/__init__.py), dispatch.cpp and views.cpp.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Raise with every change of what the binding calls; it checks this number.
#define SSL_VIEWS_INTERFACE 2

enum { FLOAT32 = 0, BFLOAT16 = 1, UINT8 = 2 };
enum { BRIGHTNESS = 0, CONTRAST = 1, SATURATION = 2, HUE = 3 };

// One call: B images of V views each. Arrays of records are (B, V, ...), row by row.
struct SslViewsBatch {
  int64_t num_images, num_views, channels, size;
  int64_t bicubic, blur_kernel_size, dtype, channels_last;
  const int64_t* pixels;   // (B,) addresses of uint8 (H, W, C)
  const int64_t* heights;  // (B,)
  const int64_t* widths;   // (B,)
  const int32_t* box;      // (B, V, 4) top, left, height, width
  const uint8_t* flip;
  const int8_t* order;     // (B, V, 4) colour operations in order, -1 for none
  const float* factor;     // (B, V, 4) by operation
  const uint8_t* grayscale;
  const float* blur_sigma;
  const uint8_t* solarize;
  const float* scale;      // (C,) output = value * scale + shift
  const float* shift;      // (C,)
  void* views;             // (B, V, C, S, S), or (B, V, S, S, C) if channels_last
};
