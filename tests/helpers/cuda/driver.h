// The part of CUDA's driver that the renderer calls, for the kernels built as C++: a GPU's memory is the host's. Whatever the
// real one would refuse is refused.
#include <dlfcn.h>
#include <stdint.h>

enum { INVALID_VALUE = 1, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500 };
static const int DEVICE = 30;
static const uintptr_t CONTEXT = 71, MODULE = 72, STREAM = 42;
static uintptr_t current;

extern "C" {
int cuInit(unsigned flags) { return flags ? INVALID_VALUE : 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = DEVICE, ordinal ? INVALID_VALUE : 0; }
int cuDevicePrimaryCtxRetain(uintptr_t* context, int device) { return *context = CONTEXT, device == DEVICE ? 0 : INVALID_VALUE; }
int cuCtxSetCurrent(uintptr_t context) { return current = context, context == CONTEXT ? 0 : INVALID_CONTEXT; }
int cuModuleLoadData(uintptr_t* module, const void* image) {
  *module = MODULE;
  return current != CONTEXT ? INVALID_CONTEXT : memcmp(image, "machine code", 13) ? INVALID_VALUE : 0;
}
int cuModuleGetFunction(const char** function, uintptr_t module, const char* name) {
  *function = strdup(name);
  return module == MODULE ? 0 : INVALID_HANDLE;
}
int cuLaunchKernel(const char* function, unsigned bx, unsigned by, unsigned bz, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, uintptr_t stream, void** values, void** extra) {
  if (current != CONTEXT) return INVALID_CONTEXT;
  if (!bx || !by || !bz || ty != 1 || tz != 1 || shared || stream != STREAM || extra) return INVALID_VALUE;
  const int blocks[3] = {(int)bx, (int)by, (int)bz};
  return launch(function, blocks, threads, values, -1) ? NOT_FOUND : 0;
}
int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, void*) {
  *function = dlsym(RTLD_DEFAULT, name);
  return *function ? 0 : NOT_FOUND;
}
}
