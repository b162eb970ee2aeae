// CUDA's words for a C++ compiler: blocks run one after another, the threads of a block as fibres that change places only
// where they wait for each other. Shuffles and votes meet per warp, __syncthreads per block. Who goes on first is drawn by
// lot: a kernel that forgets to wait meets every order sooner or later.
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __expf expf
using std::max;
using std::min;
struct float4 { float x, y, z, w; };
struct ushort4 { unsigned short x, y, z, w; };
struct Index { int x, y, z; };
static Index gridDim, blockDim, blockIdx, threadIdx;

inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline float atomicAdd(float* p, float v) { const float old = *p; *p += v; return old; }

namespace fibres {
// What is told at a meeting lies in two buffers by turns: nobody can be a whole meeting ahead.
struct Group { int size = 0, arrived = 0, meetings = 0; std::vector<int> waiting; int told[2][256]; };
struct Fibre { jmp_buf place; ucontext_t start; std::vector<char> stack; bool begun = false; };
static std::vector<Fibre> all(256);
static Group block, warps[8];
static std::vector<int> ready;
static int now;
static unsigned lot = 1;
static jmp_buf home;
static void (*body)(void*);
static void* body_data;

inline void meet(Group& group) {
  if (++group.arrived == group.size) {
    group.arrived = 0;
    ++group.meetings;
    for (int t : group.waiting) ready.push_back(t);
    group.waiting.clear();
    return;
  }
  group.waiting.push_back(now);
  if (!_setjmp(all[now].place)) _longjmp(home, 1);
}
inline void begin() { body(body_data); _longjmp(home, 1); }
inline void run_block(int threads) {
  block.size = threads;
  for (auto& warp : warps) warp.size = 32;
  for (int t = 0; t < threads; ++t) { all[t].begun = false; ready.push_back(t); }
  while (!ready.empty()) {
    lot = lot * 1664525u + 1013904223u;
    std::swap(ready[(lot >> 8) % ready.size()], ready.back());
    now = ready.back();
    ready.pop_back();
    threadIdx = {now, 0, 0};
    if (_setjmp(home)) continue;
    Fibre& fibre = all[now];
    if (fibre.begun) _longjmp(fibre.place, 1);
    fibre.begun = true;
    fibre.stack.resize(65536);
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = fibre.stack.data();
    fibre.start.uc_stack.ss_size = fibre.stack.size();
    fibre.start.uc_link = nullptr;
    makecontext(&fibre.start, begin, 0);
    setcontext(&fibre.start);
  }
}
// Tells the group and waits for it; returns what all told.
inline const int* tell(int word, Group& group) {
  const int t = now, turn = group.meetings & 1;
  group.told[turn][t] = word;
  meet(group);
  threadIdx = {t, 0, 0};
  return group.told[turn];
}
inline const int* tell_warp(int word) { return tell(word, warps[now / 32]); }
}  // namespace fibres

inline void __syncthreads() { fibres::tell(0, fibres::block); }
inline int __syncthreads_count(int flag) {
  const int* told = fibres::tell(flag != 0, fibres::block);
  return std::accumulate(told, told + fibres::block.size, 0);
}
inline unsigned __ballot_sync(unsigned, int flag) {
  const int* told = fibres::tell_warp(flag != 0) + fibres::now / 32 * 32;
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= (unsigned)told[lane] << lane;
  return votes;
}
inline int __any_sync(unsigned, int flag) { return __ballot_sync(~0u, flag) != 0; }
inline int __shfl_xor_sync(unsigned, int v, int bit) { return fibres::tell_warp(v)[fibres::now ^ bit]; }
inline float __shfl_xor_sync(unsigned, float v, int bit) {
  const int word = fibres::tell_warp(__float_as_int(v))[fibres::now ^ bit];
  float other;
  memcpy(&other, &word, 4);
  return other;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) { kernel(*(A*)args[I]...); }

template <class... A>
int run(void (*kernel)(A...), const int* blocks, int threads, void** args, int count) {
  if (count >= 0 && count != (int)sizeof...(A)) return 2;  // below 0: the caller cannot know
  struct Data { void (*kernel)(A...); void** args; } data{kernel, args};
  fibres::body_data = &data;
  fibres::body = [](void* d) { call(((Data*)d)->kernel, ((Data*)d)->args, std::index_sequence_for<A...>()); };
  gridDim = {blocks[0], blocks[1], blocks[2]};
  blockDim = {threads, 1, 1};
  for (int z = 0; z < blocks[2]; ++z)
    for (int y = 0; y < blocks[1]; ++y)
      for (int x = 0; x < blocks[0]; ++x) { blockIdx = {x, y, z}; fibres::run_block(threads); }
  return 0;
}
