// Before a loop of device code whose steps fetch from memory: so many of them do so side by side.
#pragma once

#ifdef __CUDA_ARCH__
#define HEED_AHEAD _Pragma("unroll 8")
#else
#define HEED_AHEAD
#endif
