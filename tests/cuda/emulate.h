// CUDA's words for a C++ compiler: blocks run one after another, the threads of a block as fibres that change places only
// where they wait for each other. Shuffles and votes meet per warp, __syncthreads per block.
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __expf expf
using std::max;
using std::min;
struct float4 { float x, y, z, w; };
struct Index { int x, y, z; };
static Index gridDim, blockDim, blockIdx, threadIdx;

inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline float atomicAdd(float* p, float v) { const float old = *p; *p += v; return old; }

namespace fibres {
struct Group { int size = 0, arrived = 0; std::vector<int> waiting; };
struct Fibre { jmp_buf place; ucontext_t start; std::vector<char> stack; int rounds = 0; bool begun = false; };
static std::vector<Fibre> all(256);
static Group block, warps[8];
static std::deque<int> ready;
static int now;
static jmp_buf home;
static ucontext_t home_context;
static float value[2][256];
static int vote[2][256];
static void (*body)(void*);
static void* body_data;

inline void meet(Group& group) {
  if (++group.arrived == group.size) {
    group.arrived = 0;
    for (int t : group.waiting) ready.push_back(t);
    group.waiting.clear();
    return;
  }
  group.waiting.push_back(now);
  if (!_setjmp(all[now].place)) _longjmp(home, 1);
}
inline void begin() { body(body_data); _longjmp(home, 1); }
inline void run_block(int threads) {
  block = Group();
  block.size = threads;
  for (auto& warp : warps) { warp = Group(); warp.size = 32; }
  for (int t = 0; t < threads; ++t) { all[t].begun = false; all[t].rounds = 0; ready.push_back(t); }
  while (!ready.empty()) {
    now = ready.front();
    ready.pop_front();
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
// two buffers by turns: nobody can be a whole meeting ahead
inline int tell(int flag, Group& group) {
  const int t = now, turn = all[t].rounds++ & 1;
  vote[turn][t] = flag;
  meet(group);
  threadIdx = {t, 0, 0};
  return turn;
}
}  // namespace fibres

inline void __syncthreads() { fibres::tell(0, fibres::block); }
inline int __syncthreads_count(int flag) {
  const int turn = fibres::tell(flag != 0, fibres::block);
  int sum = 0;
  for (int t = 0; t < fibres::block.size; ++t) sum += fibres::vote[turn][t];
  return sum;
}
inline int __syncthreads_or(int flag) { return __syncthreads_count(flag) > 0; }
inline int __any_sync(unsigned, int flag) {
  const int base = fibres::now / 32 * 32, turn = fibres::tell(flag != 0, fibres::warps[base / 32]);
  return std::any_of(fibres::vote[turn] + base, fibres::vote[turn] + base + 32, [](int v) { return v; });
}
inline float __shfl_xor_sync(unsigned, float v, int bit) {
  const int t = fibres::now, turn = fibres::all[t].rounds & 1;
  fibres::value[turn][t] = v;
  fibres::tell(0, fibres::warps[t / 32]);
  return fibres::value[turn][t ^ bit];
}
inline int __shfl_xor_sync(unsigned, int v, int bit) {
  const int t = fibres::now, turn = fibres::tell(v, fibres::warps[t / 32]);
  return fibres::vote[turn][t ^ bit];
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
