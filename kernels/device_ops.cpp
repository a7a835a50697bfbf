#include "kernels/device_ops.h"

#include <algorithm>

#include "kernels/device_bodies.h"

namespace heed {

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"cpu", "cuda"};
  return names;
}

Device device_named(const std::string& name) { return static_cast<Device>(choose("device", name, device_names())); }

const std::vector<std::string>& storage_names() {
  static const std::vector<std::string> names{"fp32", "bf16"};
  return names;
}

Storage storage_named(const std::string& name) {
  return static_cast<Storage>(choose("storage", name, storage_names()));
}

DeviceOps::DeviceOps() : waiting_(std::make_unique<bodies::Chain>()) {}
DeviceOps::~DeviceOps() = default;

void DeviceOps::chain(const bodies::Link& link, Offset count) {
  bodies::Chain& chain = *waiting_;
  // Contract's gradient reads other places of dy than its own.
  const float* dy = link.kind == bodies::Link::Kind::contract_back ? link.contract.dy.data : nullptr;
  auto writes_it = [&](const bodies::Link& other) { return dy >= other.to && dy < other.to + waiting_count_; };
  const bool waits = dy && std::any_of(chain.links, chain.links + chain.count, writes_it);
  if (chain.count == bodies::Chain::kMost || count != waiting_count_ || waits) flush();
  waiting_count_ = count;
  chain.links[chain.count++] = link;
}

void DeviceOps::flush() {
  if (waiting_->count == 0) return;
  const bodies::Chain chain = *waiting_;
  forget();
  if (waiting_count_ > 0) run(bodies::place<bodies::Chain>(), &chain, waiting_count_);
}

void DeviceOps::forget() { waiting_->count = 0; }

void DeviceOps::aside(const std::function<void()>& work) {
  if (aside_) return work();
  auto turn = [&](bool there) {
    flush();
    turn_aside(there);
    aside_ = there;
  };
  turn(true);
  joined_ = false;
  try {
    work();
    turn(false);
  } catch (...) {
    forget();
    turn(false);
    throw;
  }
}

void DeviceOps::join() {
  if (joined_ || aside_) return;
  flush();
  wait_for_aside();
  joined_ = true;
}

void* DeviceOps::scratch(Offset bytes) {
  auto& scratch = rooms_[aside_].scratch;
  if (scratch.empty() || scratch.back().cols() < bytes)
    scratch.emplace_back(this).resize(1, std::max<Offset>(bytes, 1));
  return scratch.back().data();
}

unsigned* DeviceOps::tickets(Offset count) {
  auto& tickets = rooms_[aside_].tickets;
  if (tickets.empty() || tickets.back().cols() < count) {
    Matrix<unsigned>& room = tickets.emplace_back(this);
    room.resize(1, std::max<Offset>(count, 1024));
    room.fill(0);
  }
  return tickets.back().data();
}

#ifndef HEED_CUDA
std::unique_ptr<DeviceOps> open_device(Device device) {
  if (device == Device::cuda) fail("device 'cuda': heed was built without CUDA; train with --device cpu");
  return nullptr;
}
#endif

}  // namespace heed
