// The C interface: the choice of instruction set, and threads.
#include <stdlib.h>

#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "views.h"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define FOR_EACH_ISA(DO) SSL_VIEWS_ISAS(DO)  // the build defines it, e.g. DO(sse2) DO(avx2)
#define DECLARE(isa)                                                        \
  extern "C" size_t ssl_views_scratch_##isa(const SslViewsBatch*, int64_t); \
  extern "C" void ssl_views_render_##isa(const SslViewsBatch*, int64_t, char*);
FOR_EACH_ISA(DECLARE)

namespace {

struct InstructionSet {
  const char* name;
  size_t (*scratch)(const SslViewsBatch*, int64_t);
  void (*render)(const SslViewsBatch*, int64_t, char*);
};

// From the plainest to the widest.
#define ENTRY(isa) {#isa, ssl_views_scratch_##isa, ssl_views_render_##isa},
const InstructionSet ISAS[] = {FOR_EACH_ISA(ENTRY)};
const int NUM_ISAS = sizeof(ISAS) / sizeof(ISAS[0]);

int num_usable() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const int supported = avx512 ? 3 : avx2 ? 2 : 1;
  return supported < NUM_ISAS ? supported : NUM_ISAS;
#else
  return NUM_ISAS;
#endif
}

// Memory that a thread keeps for its next view, aligned to a cache line.
struct Memory {
  char* start = nullptr;
  size_t size = 0;
  ~Memory() { free(start); }
  char* of(size_t needed) {
    if (needed > size) {
      free(start);
      size = needed + needed / 4 + 64;
      start = (char*)malloc(size);
      if (start == nullptr) {
        size = 0;
        return nullptr;
      }
    }
    return start + (64 - (uintptr_t)start % 64) % 64;
  }
};
thread_local Memory memory;

}  // namespace

EXPORT int ssl_views_interface() { return SSL_VIEWS_INTERFACE; }
EXPORT int ssl_views_num_usable() { return num_usable(); }
EXPORT const char* ssl_views_isa(int number) { return ISAS[number].name; }

// Renders all views of a batch. Returns 0, or 1 if there was not enough memory.
EXPORT int ssl_views_render(const SslViewsBatch* batch, int isa, int num_threads) {
  const InstructionSet& chosen = ISAS[isa];
  const int64_t num_views = batch->num_images * batch->num_views;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    for (int64_t view; (view = next++) < num_views && !failed;) {
      char* scratch = memory.of(chosen.scratch(batch, view) + 64);
      if (scratch == nullptr)
        failed = true;
      else
        chosen.render(batch, view, scratch);
    }
#if defined(__x86_64__)
    __builtin_ia32_sfence();  // what was written around the caches is there for every thread
#endif
  };
  std::vector<std::thread> threads;
  try {
    threads.reserve(num_threads > 1 ? num_threads - 1 : 0);
    for (int i = 1; i < num_threads && i < num_views; i++) threads.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads: those that started do the work
  } catch (const std::bad_alloc&) {
  }
  work();
  for (std::thread& thread : threads) thread.join();
  return failed;
}

// Philox 4x32-10 of a counter (index, view, block): `blocks` x 4 words per view. Integer arithmetic,
// so the same everywhere; counter_random.py says what it is for.
EXPORT void ssl_views_philox(const uint64_t* index, int64_t num_images, int64_t num_views,
                             int64_t num_blocks, uint32_t seed, uint32_t epoch, uint32_t* words) {
  for (int64_t i = 0; i < num_images; i++)
    for (int64_t v = 0; v < num_views; v++)
      for (int64_t b = 0; b < num_blocks; b++) {
        uint32_t c0 = (uint32_t)index[i], c1 = (uint32_t)(index[i] >> 32);
        uint32_t c2 = (uint32_t)v, c3 = (uint32_t)b, k0 = seed, k1 = epoch;
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
          const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
          c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, c1 = (uint32_t)p1;
          c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1, c3 = (uint32_t)p0;
        }
        *words++ = c0, *words++ = c1, *words++ = c2, *words++ = c3;
      }
}
