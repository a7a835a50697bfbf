// Before a loop of device code: whether steps that fetch from memory do so side by side, or the code stays short.
#pragma once

#ifdef __CUDA_ARCH__
#define HEED_AHEAD _Pragma("unroll 8")
#define HEED_ONE_BY_ONE _Pragma("unroll 1")
#else
#define HEED_AHEAD
#define HEED_ONE_BY_ONE
#endif
