#include "queue.hpp"

#include <sys/mman.h>

#include <cstring>

#include "common/fault_point.hpp"
#include "process_setup.hpp"

namespace ublk {

namespace {

// Not in the liburing of Debian 12; since Linux 6.7.
constexpr uint8_t kOpFutexWait = 51;
constexpr int kFutexSizeU32 = 2;
constexpr uint64_t kFutexAnyBit = 0xffffffff;

constexpr uint32_t kDeviceFile = 0;  // index in the ring's registered files; the backend's follow

// A flush has no place; the kernel leaves anything there.
RequestIdentity identityOf(const IoDescriptor& descriptor) {
  const uint32_t operation = descriptor.opFlags & kOperationMask;
  if (operation == static_cast<uint32_t>(Operation::flush)) return {0, 0, operation};
  return {descriptor.startSector, descriptor.sectors, operation};
}

}  // namespace

Queue::Queue(const QueueSetup& setup, Backend& backend)
    : setup_(setup),
      faults_(setup.faults ? std::make_unique<Faults>(*setup.faults, setup.inflight,
                                                      Faults::Setup{setup.deviceBytes, setup.depth, setup.maxIoBytes},
                                                      backend, *this)
                           : nullptr),
      backend_(faults_ ? static_cast<Backend&>(*faults_) : backend),
      gate_(*setup.header, setup.depth),
      accounts_(*setup.page, setup.inflight, setup.depth),
      tags_(setup.depth) {
  zeros_ = mapMemory(setup.maxIoBytes, PROT_READ);
  if (setup.dataPath == DataPath::copy) {
    buffers_ = mapMemory(size_t{setup.maxIoBytes} * setup.depth, PROT_READ | PROT_WRITE);
  }
  io_uring_params params{};
  params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL;
  // A tag has at most a copy and a commit, or an operation of the backend, to submit at a time; one
  // more entry waits for the drain flag.
  int result = io_uring_queue_init_params(2 * setup.depth + 1, &ring_, &params);
  if (result < 0) throw std::system_error(-result, std::generic_category(), "setting up io_uring");
  std::vector<int> files{setup.charDevice};
  files.insert(files.end(), setup.backendFiles.begin(), setup.backendFiles.end());
  result = io_uring_register_files(&ring_, files.data(), static_cast<unsigned>(files.size()));
  if (result < 0) throw std::system_error(-result, std::generic_category(), "registering files");
  if (setup.dataPath == DataPath::zeroCopy) {
    result = io_uring_register_buffers_sparse(&ring_, setup.depth);
    if (result < 0) throw std::system_error(-result, std::generic_category(), "registering request buffers");
  }
  io_uring_register_ring_fd(&ring_);  // saves a file look-up a call; without it everything works the same
}

Queue::~Queue() { io_uring_queue_exit(&ring_); }

io_uring_sqe* Queue::nextSqe(Completion kind, uint16_t tag) {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (!sqe) throw std::system_error(EOVERFLOW, std::generic_category(), "queueing a submission");
  std::memset(sqe, 0, sizeof *sqe);
  sqe->user_data = static_cast<uint64_t>(kind) << 16 | tag;
  return sqe;
}

void Queue::prepareCommand(uint32_t opcode, uint16_t tag, int32_t result) {
  io_uring_sqe* sqe = nextSqe(Completion::command, tag);
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->flags = IOSQE_FIXED_FILE;
  sqe->fd = kDeviceFile;
  sqe->cmd_op = opcode;
  if (setup_.dataPath == DataPath::zeroCopy) sqe->addr = registeredBufferAddress(tag);
  const IoCommand command{static_cast<uint16_t>(setup_.index), tag, result,
                          buffers_ ? reinterpret_cast<uint64_t>(bufferOf(tag)) : 0};
  std::memcpy(sqe->cmd, &command, sizeof command);
}

// Completes when the supervisor wakes the futex, having set the drain flag or not: no descriptor and no message are needed.
void Queue::awaitDrain() {
  io_uring_sqe* sqe = nextSqe(Completion::drain, 0);
  sqe->opcode = kOpFutexWait;
  sqe->fd = kFutexSizeU32;
  sqe->addr = reinterpret_cast<uint64_t>(&setup_.page->drain);
  sqe->off = 0;  // the value that means: go on
  sqe->addr3 = kFutexAnyBit;
}

void Queue::fetchWithSiblings() {
  DeviceHeader& header = *setup_.header;
  const bool keepsOneBack = header.mayComplete == 0 && setup_.index + 1 == setup_.queues;
  awaitSiblings(header, setup_.queues);
  setup_.page->phase = static_cast<uint32_t>(Phase::fetching);
  faultPoint("fetching", setup_.index);
  fetch(setup_.depth - (keepsOneBack ? 1 : 0));
  setup_.page->phase = static_cast<uint32_t>(Phase::fetched);
  faultPoint("fetched", setup_.index);
  announceFetched(header);
  faultPoint("announced", setup_.index);
  if (keepsOneBack) {
    awaitPermission(header);
    faultPoint("permitted", setup_.index);
    fetch(1);
    faultPoint("complete", setup_.index);
    announceFetched(header);
  }
}

void Queue::fetch(uint32_t tags) {
  for (uint32_t i = 0; i < tags; i++) prepareCommand(kFetch, static_cast<uint16_t>(fetched_++), 0);
  int submitted;
  do {
    submitted = io_uring_submit(&ring_);
  } while (submitted == -EINTR);
  if (submitted < 0) throw std::system_error(-submitted, std::generic_category(), "fetching requests");
}

void Queue::serve() {
  awaitDrain();
  do {
    const int submitted = io_uring_submit_and_wait(&ring_, 1);
    if (submitted < 0 && submitted != -EINTR) {
      throw std::system_error(-submitted, std::generic_category(), "waiting for requests");
    }
    handleCompletions();
  } while (!done());
  // A queue that drains has answers that are not sent yet. A commit behind its copy goes out only when this thread asks for
  // events, and without it the request would count as outstanding.
  io_uring_submit_and_get_events(&ring_);
}

void Queue::notify(int eventfd) {
  const int result = io_uring_register_eventfd(&ring_, eventfd);
  if (result < 0) throw std::system_error(-result, std::generic_category(), "registering the queue's eventfd");
}

Queue::Taken Queue::take() {
  accounts_.settle();
  // With DEFER_TASKRUN nothing is posted until this thread asks.
  const int result = io_uring_submit_and_get_events(&ring_);
  if (result < 0 && result != -EINTR) throw std::system_error(-result, std::generic_category(), "taking requests");
  if (io_uring_cq_ready(&ring_) == 0) waitForHalfQueued();
  const unsigned taken = handleCompletions();
  if (done()) return Taken::all;
  return taken > 0 ? Taken::something : Taken::nothing;
}

// From Linux 7.3 a request can be half queued: its sender was interrupted between two instructions. The kernel
// then leaves it, and those before it, where they are, and does not signal the eventfd again when it is complete. It
// does say that there is work left, and who asks for at least one event gets it. The flag may also be a stale one, hence
// no waiting when there is nothing.
void Queue::waitForHalfQueued() {
  if ((__atomic_load_n(ring_.sq.kflags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN) == 0) return;
  io_uring_cqe* first = nullptr;
  __kernel_timespec none{};
  const int result = io_uring_submit_and_wait_timeout(&ring_, &first, 1, &none, nullptr);
  if (result < 0 && result != -ETIME && result != -EINTR) {
    throw std::system_error(-result, std::generic_category(), "taking requests");
  }
}

void Queue::submit() {
  accounts_.settle();
  int submitted;
  do {
    submitted = io_uring_submit(&ring_);
  } while (submitted == -EINTR);
  if (submitted < 0) throw std::system_error(-submitted, std::generic_category(), "answering requests");
}

// The kernel has every tag back, or the queue was asked to drain and nothing is in the backend: requests that arrived
// meanwhile stay with the kernel, which gives them to the next generation.
bool Queue::done() const {
  return fetched_ == 0 || (accounts_.outstanding() == 0 && setup_.page->drain.load(std::memory_order_relaxed));
}

// How many there were, with the requests that had waited for them.
unsigned Queue::handleCompletions() {
  accounts_.beginBatch();
  unsigned head;
  unsigned seen = 0;
  io_uring_cqe* cqe;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    seen++;
    handle(cqe->user_data, cqe->res);
  }
  io_uring_cq_advance(&ring_, seen);
  unsigned admitted = gate_.waiting() ? admitWaiting() : 0;
  if (faults_) admitted += faults_->turn();
  accounts_.settle();
  return seen + admitted;
}

void Queue::handle(uint64_t userData, int32_t result) {
  const auto tag = static_cast<uint16_t>(userData);
  switch (static_cast<Completion>(userData >> 16)) {
    case Completion::drain:
      // The flag is as it was: the supervisor wants a sign of life, which this turn of the loop is.
      if (result == 0 && !setup_.page->drain.load(std::memory_order_relaxed)) awaitDrain();
      return;
    case Completion::copy:
      // Only a copy that failed or fell short is reported. The commit linked to it was cancelled without a word.
      return commitFault(tag);
    case Completion::backend:
      return backend_.completed(*this, tag, result);
    case Completion::command:
      break;
  }
  if (result == 0) {
    if (!setup_.page->drain.load(std::memory_order_relaxed)) admit(tag);
    return;
  }
  if (result == -ENODEV) {
    fetched_--;
    return;
  }
  throw std::system_error(-result, std::generic_category(), "fetching a request");
}

void Queue::admit(uint16_t tag) {
  if (gate_.open()) return begin(tag);
  const Gate::Way way = gate_.arrive(tag, identityOf(setup_.descriptors[tag]), accounts_.outstanding() > 0);
  if (way != Gate::Way::wait) begin(tag, way == Gate::Way::refuse);
}

// Not from within an answer: a backend in JavaScript takes its requests in batches. What waits when the queue drains
// stays with the kernel.
unsigned Queue::admitWaiting() {
  unsigned admitted = 0;
  while (!setup_.page->drain.load(std::memory_order_relaxed)) {
    const auto tag = gate_.next(accounts_.outstanding() > 0);
    if (!tag) break;
    begin(*tag);
    admitted++;
  }
  return admitted;
}

void Queue::begin(uint16_t tag, bool refused) {
  const IoDescriptor& descriptor = setup_.descriptors[tag];
  const auto operation = static_cast<Operation>(descriptor.opFlags & kOperationMask);
  const bool flush = operation == Operation::flush;
  const RequestIdentity identity = identityOf(descriptor);
  const uint64_t offset = flush ? 0 : descriptor.startSector << kSectorShift;
  const uint64_t length = flush ? 0 : uint64_t{descriptor.sectors} << kSectorShift;

  accounts_.began(tag, identity);
  const Request request{
      .tag = tag,
      .operation = operation,
      .fua = (descriptor.opFlags & kIoFua) != 0,
      .mayUnmap = (descriptor.opFlags & kIoNoUnmap) == 0,
      .offset = offset,
      .length = static_cast<uint32_t>(length),
      .data = buffers_ ? bufferOf(tag) : nullptr,
  };
  if (refused) return answer(request, -EIO);
  switch (operation) {
    case Operation::read:
    case Operation::write:
      if (length > setup_.maxIoBytes) return complete(request, -EIO);
      [[fallthrough]];
    case Operation::discard:
    case Operation::writeZeroes:
      if (length > UINT32_MAX || offset > setup_.deviceBytes || length > setup_.deviceBytes - offset) {
        return complete(request, -EIO);
      }
      [[fallthrough]];
    case Operation::flush:
      return backend_.submit(*this, request);
  }
  complete(request, -EOPNOTSUPP);
}

void Queue::complete(const Request& request, int64_t result) {
  const int32_t committed = committedResult(request.operation, result, request.length);
  if (committed < 0) accounts_.noteFailure(request.tag, -committed);
  answer(request, committed);
}

void Queue::answer(const Request& request, int32_t committed) {
  prepareCommand(kCommitAndFetch, request.tag, committed);
  accounts_.answered(request.tag, request.operation, request.length, committed < 0);
  gate_.answered(request.tag);
}

void Queue::working() { accounts_.working(); }

void Queue::copyAndComplete(const Request& request, std::byte* memory, int32_t faultResult) {
  const bool read = request.operation == Operation::read;
  copyAndComplete(request, read ? IORING_OP_WRITE : IORING_OP_READ, memory, request.length, faultResult);
}

void Queue::copyAndComplete(const Request& request, std::span<const iovec> pieces, int32_t faultResult) {
  const bool read = request.operation == Operation::read;
  copyAndComplete(request, read ? IORING_OP_WRITEV : IORING_OP_READV, pieces.data(), pieces.size(), faultResult);
}

// `length`: of `memory`, in bytes or pieces. Linked: the commit goes out only after the whole copy; a short copy cancels it.
void Queue::copyAndComplete(const Request& request, uint8_t opcode, const void* memory, size_t length,
                            int32_t faultResult) {
  io_uring_sqe* sqe = nextSqe(Completion::copy, request.tag);
  sqe->opcode = opcode;
  sqe->flags = IOSQE_FIXED_FILE | IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS;
  sqe->fd = kDeviceFile;
  sqe->addr = reinterpret_cast<uint64_t>(memory);
  sqe->len = static_cast<uint32_t>(length);
  sqe->off = requestDataOffset(setup_.index, request.tag);
  tags_[request.tag].faultResult = faultResult;
  complete(request, request.length);
}

void Queue::commitFault(uint16_t tag) {
  const auto operation = static_cast<Operation>(setup_.descriptors[tag].opFlags & kOperationMask);
  accounts_.copyFailed(tag, operation, -tags_[tag].faultResult);
  prepareCommand(kCommitAndFetch, tag, tags_[tag].faultResult);
}

}  // namespace ublk
