// The zygote of a device.
//
// Only one address space may map /dev/ublkcN and only one open of it may exist, but a mapping is inherited by fork().
// So one process opens and maps the descriptor areas of all queues and forks a process per queue. It holds on to
// neither: a process with a reference to the char device keeps the kernel from recovering it.
//
// It never blocks on the kernel's ublk locks: control commands run in processes forked for them.
#include "zygote.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "common/channel.hpp"
#include "common/peer.hpp"
#include "control_process.hpp"
#include "descriptor_areas.hpp"
#include "held_generation.hpp"
#include "queue/queue_process.hpp"

namespace ublk {

namespace {

struct Child {
  pid_t pid;
  uint32_t controlSequence;  // 0 for queue processes
};

// Thrown in a forked child to leave the zygote's stack, and with it the preloaded library's constructor.
struct JavaScriptChild {
  Inheritance inheritance;
  int sharedPage;
  int parkedFiles;
};

class Zygote {
 public:
  Zygote(FileDescriptor listener, FileDescriptor supervisor, int controlFd)
      : listener_(std::move(listener)), supervisor_(std::move(supervisor)), controlFd_(controlFd) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, &inheritedMask_);
    childSignals_ = FileDescriptor(checked(signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK), "signalfd"));
    prctl(PR_SET_NAME, "ublk-zygote");
  }

  [[noreturn]] void run() {
    sayHello();
    for (;;) {
      const auto wanted = static_cast<short>(outbox_.empty() ? POLLIN : POLLIN | POLLOUT);
      pollfd watched[] = {
          {listener_.get(), POLLIN, 0}, {childSignals_.get(), POLLIN, 0}, {supervisor_.get(), wanted, 0}};
      if (poll(watched, std::size(watched), -1) < 0) {
        if (errno == EINTR) continue;
        std::abort();
      }
      if (watched[1].revents) reap();
      if (watched[0].revents) acceptSupervisor();
      if (!supervisor_ || watched[2].fd != supervisor_.get()) continue;
      if (watched[2].revents & POLLOUT) sendWaiting();
      if (watched[2].revents & ~POLLOUT) receive();
    }
  }

 private:
  void acceptSupervisor() {
    FileDescriptor connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!connection) return;
    if (!isSupervisor(connection.get())) return;
    letSupervisorGo();
    supervisor_ = std::move(connection);
    sayHello();
  }

  void sayHello() {
    HelloMessage hello{};
    hello.header = headerOf(MessageType::hello);
    hello.pid = getpid();
    send(&hello, sizeof hello);
  }

  // Not a queue process of its own, which may be of the same user.
  static bool isSupervisor(int connection) {
    try {
      const Peer peer = peerOf(connection);
      return peer.uid == geteuid() && peer.administrates;
    } catch (const std::system_error&) {
      return false;
    }
  }

  // The queue processes do not need a supervisor. What it was having done is given up, so that its successor, who does
  // not know of it, finds nothing that changes.
  void letSupervisorGo() {
    if (!supervisor_) return;
    supervisor_.reset();
    outbox_.clear();
    for (const auto& child : children_) {
      if (child.controlSequence != 0) kill(child.pid, SIGKILL);
    }
    endIfUseless();
  }

  void send(const void* message, size_t bytes, std::span<const int> files = {}) {
    if (!supervisor_) return;
    try {
      outbox_.send(supervisor_.get(), message, bytes, files);
    } catch (const std::system_error&) {
      letSupervisorGo();
    }
  }

  void sendWaiting() {
    try {
      outbox_.flush(supervisor_.get());
    } catch (const std::system_error&) {
      letSupervisorGo();
    }
  }

  void receive() {
    union {
      MessageHeader header;
      SpawnMessage spawn;
      ControlMessage control;
    } message;
    try {
      Received received = receiveMessage(supervisor_.get(), &message, sizeof message);
      if (received.wouldBlock) return;
      if (!isWellFormed(message.header, received.bytes)) return letSupervisorGo();
      switch (message.header.type) {
        case MessageType::spawn:
          return spawn(message.spawn, received.files);
        case MessageType::control:
          return control(message.control, received.files);
        case MessageType::cancel:
          return cancel(message.header.sequence);
        case MessageType::retire:
          return retire();
        case MessageType::inventory:
          return inventory(message.header.sequence);
        default:
          return letSupervisorGo();
      }
    } catch (const std::system_error&) {
      letSupervisorGo();
    }
  }

  static bool isWellFormed(const MessageHeader& header, size_t bytes) {
    if (bytes < sizeof header || header.magic != kProtocolMagic || header.version != kProtocolVersion) return false;
    switch (header.type) {
      case MessageType::spawn:
        return bytes == sizeof(SpawnMessage);
      case MessageType::control:
        return bytes == sizeof(ControlMessage);
      default:
        return bytes == sizeof(MessageHeader);
    }
  }

  // ---- queue processes ---------------------------------------------------------------------------------------------

  void spawn(const SpawnMessage& request, std::vector<FileDescriptor>& files) {
    SpawnedMessage answer{};
    answer.header = headerOf(MessageType::spawned, request.header.sequence);
    std::vector<FileDescriptor> pidfds;
    try {
      forkGeneration(request, files, answer, pidfds);
      held_.hold(request, answer, std::move(files));
    } catch (const std::system_error& error) {
      // Half a generation is of no use: its processes end with the pidfds unreported.
      for (uint32_t i = 0; i < answer.queues; i++) kill(answer.pids[i], SIGKILL);
      pidfds.clear();
      answer.queues = 0;
      answer.error = error.code().value();
      std::snprintf(answer.step, sizeof answer.step, "%s", error.what());
    }
    send(&answer, sizeof answer, rawDescriptors(pidfds));
  }

  void forkGeneration(const SpawnMessage& request, std::vector<FileDescriptor>& files, SpawnedMessage& answer,
                      std::vector<FileDescriptor>& pidfds) {
    if (request.queues == 0 || request.queues > kMaxQueues || request.depth == 0 || request.depth > kMaxDepth ||
        request.backendFiles > kMaxBackendFiles || request.keptFiles > kMaxBackendFiles ||
        files.size() != 1 + request.backendFiles + request.keptFiles ||
        (request.javascript ? request.backendFiles != request.queues + 2 : request.backendFiles > 1)) {
      throw std::system_error(EINVAL, std::generic_category(), "reading the spawn request");
    }
    char path[32];
    std::snprintf(path, sizeof path, "/dev/ublkc%d", request.deviceId);
    // O_NONBLOCK tells io_uring that reads and writes on the char device (user-copy) do not block, so it does them at
    // once and not in a worker thread.
    const FileDescriptor device(checked(open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK), "opening the char device"));
    DescriptorAreas areas(device.get(), request.queues, request.depth);
    for (uint32_t queue = 0; queue < request.queues; queue++) {
      const pid_t pid = checked(fork(), "forking a queue process");
      if (pid == 0) {
        pidfds.clear();  // of the siblings that were forked before
        becomeQueueProcess(request, queue, device.get(), areas, files);
      }
      children_.push_back({pid, 0});
      answer.pids[answer.queues++] = pid;
      pidfds.emplace_back(static_cast<int>(checked(syscall(SYS_pidfd_open, pid, 0), "pidfd_open")));
    }
  }

  [[noreturn]] void becomeQueueProcess(const SpawnMessage& request, uint32_t queue, int device, DescriptorAreas& areas,
                                       std::vector<FileDescriptor>& files) {
    leaveZygote();
    areas.keepOnly(queue);
    supervisor_.reset();
    close(controlFd_);
    if (request.javascript) becomeJavaScriptChild(request, queue, device, areas, files);
    const int parkedFiles = request.backendFiles == 0 ? -1 : files[1].release();
    runQueueProcess({request, queue, device, areas.release(queue), files[0].release(), parkedFiles});
  }

  // Takes what the process needs out of the hands of the objects on the stack, which are about to be unwound.
  [[noreturn]] static void becomeJavaScriptChild(const SpawnMessage& request, uint32_t queue, int device,
                                                 DescriptorAreas& areas, std::vector<FileDescriptor>& files) {
    const auto keep = [](int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); };
    const int output = files[1 + request.queues].get();
    for (const int stream : {STDOUT_FILENO, STDERR_FILENO}) checked(dup2(output, stream), "dup2");
    throw JavaScriptChild{{request, queue, keep(device), areas.release(queue), files[queue + 1].release(), {}, {}},
                          files[0].release(),
                          files[2 + request.queues].release()};
  }

  // ---- control processes -------------------------------------------------------------------------------------------

  void control(const ControlMessage& request, const std::vector<FileDescriptor>& files) {
    const pid_t pid = fork();
    if (pid == 0) {
      leaveZygote();
      prctl(PR_SET_NAME, "ublk-control");
      runControlProcess(supervisor_.get(), controlFd_, request, files.empty() ? -1 : files[0].get());
    }
    if (pid > 0) {
      children_.push_back({pid, request.header.sequence});
      return;
    }
    ControlledMessage answer{};
    answer.header = headerOf(MessageType::controlled, request.header.sequence);
    answer.result = -errno;
    send(&answer, sizeof answer);
  }

  void cancel(uint32_t sequence) {
    for (const auto& child : children_) {
      if (child.controlSequence == sequence) kill(child.pid, SIGKILL);
    }
  }

  // ---- for a supervisor's successor --------------------------------------------------------------------------------

  void inventory(uint32_t sequence) {
    HeldMessage message = held_.message();
    message.header = headerOf(MessageType::held, sequence);
    message.controls = static_cast<uint32_t>(std::count_if(
        children_.begin(), children_.end(), [](const Child& child) { return child.controlSequence != 0; }));
    send(&message, sizeof message, rawDescriptors(held_.files()));
  }

  // ---- life --------------------------------------------------------------------------------------------------------

  // What every forked child undoes first. Children do not outlive the zygote: START_DEV and END_USER_RECOVERY name the
  // process that opened the char device, so a generation without its zygote could not be started again.
  void leaveZygote() {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != zygotePid_) _exit(1);
    sigprocmask(SIG_SETMASK, &inheritedMask_, nullptr);
    childSignals_.reset();
    held_.clear();
    outbox_.clear();
    listener_.reset();
  }

  void reap() {
    signalfd_siginfo ignored;
    while (read(childSignals_.get(), &ignored, sizeof ignored) > 0) {
    }
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
      const auto child =
          std::find_if(children_.begin(), children_.end(), [pid](const Child& c) { return c.pid == pid; });
      ExitedMessage message{};
      message.header = headerOf(MessageType::exited, child == children_.end() ? 0 : child->controlSequence);
      message.pid = pid;
      message.waitStatus = status;
      if (child != children_.end()) children_.erase(child);
      held_.exited(pid, status);
      send(&message, sizeof message);
    }
    endIfUseless();
  }

  // A zygote that never served is of no use to anybody but the supervisor that it was forked for.
  void endIfUseless() const {
    if (!supervisor_ && held_.empty() && children_.empty()) _exit(0);
  }

  [[noreturn]] void retire() {
    for (const auto& child : children_) kill(child.pid, SIGKILL);
    _exit(0);
  }

  const pid_t zygotePid_ = getpid();
  sigset_t inheritedMask_{};
  FileDescriptor childSignals_;
  FileDescriptor listener_;
  FileDescriptor supervisor_;
  const int controlFd_;
  Outbox outbox_;  // for the supervisor
  std::vector<Child> children_;
  HeldGeneration held_;
};

}  // namespace

Inheritance runZygote(FileDescriptor listener, FileDescriptor supervisor, int controlFd) {
  try {
    Zygote zygote(std::move(listener), std::move(supervisor), controlFd);
    zygote.run();
  } catch (const JavaScriptChild& child) {
    Inheritance inheritance = child.inheritance;
    enterJavaScript(inheritance, FileDescriptor(child.sharedPage), child.parkedFiles);
    return inheritance;
  }
}

}  // namespace ublk
