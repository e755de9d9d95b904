#pragma once

#include <cstdint>

namespace ublk {

// A moment in a queue process' start that tests can make fatal or endless; see fault_point.cpp. Only the library that
// the tests put in place of the real one (target zygote_faults in binding.gyp) has any code here.
#ifdef UBLK_FAULT_POINTS
void faultPoint(const char* name, uint32_t queue);
#else
inline void faultPoint(const char*, uint32_t) {}
#endif

}  // namespace ublk
