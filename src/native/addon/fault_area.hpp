// The supervisor's side of a device's fault rules; common/fault_rules.hpp.
#pragma once

#include <napi.h>

#include "common/fault_rules.hpp"

namespace ublk::addon {

// setFault(slot, rule | null): makes the rule the slot's, or frees the slot; its counters begin again unless `rule.kept`.
// Throws std::system_error ENOSPC when the list of bad blocks has no room.
void setFault(FaultArea& area, const Napi::CallbackInfo& info);

// faults(): [{ slot, text, matches, hits }], of every slot that has a rule.
Napi::Value faults(const FaultArea& area, Napi::Env env);

// faultLog(after): [{ number, realtimeMs, slot, match, operation, offset, length }], of the hits after that number that are
// still known.
Napi::Value faultLog(const FaultArea& area, const Napi::CallbackInfo& info);

}  // namespace ublk::addon
