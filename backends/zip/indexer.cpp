#include "indexer.hpp"

#include "addon/bindings.hpp"
#include "index.hpp"

namespace ublk {

namespace {

// new ZipIndexer(archive, dataOffset, compressedBytes, bytes, crc, deflated): checks an entry of a zip archive on
// libuv's threads, a step at a time. The archive stays open until the last step ended.
class Indexer final : public Napi::ObjectWrap<Indexer> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set("ZipIndexer", DefineClass(env, "ZipIndexer",
                                          {
                                              InstanceMethod<&Indexer::step>("step"),
                                              InstanceMethod<&Indexer::finish>("finish"),
                                          }));
  }

  explicit Indexer(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Indexer>(info) {
    addon::guarded(info.Env(), [&] {
      const auto number = [&](size_t index) {
        return static_cast<uint64_t>(info[index].As<Napi::Number>().Int64Value());
      };
      indexer_ = std::make_unique<ZipIndexer>(info[0].As<Napi::Number>().Int32Value(),
                                              ZipEntry{.dataOffset = number(1),
                                                       .compressedBytes = number(2),
                                                       .bytes = number(3),
                                                       .crc = info[4].As<Napi::Number>().Uint32Value(),
                                                       .deflated = info[5].As<Napi::Boolean>().Value()});
    });
  }

 private:
  class Step final : public Napi::AsyncWorker {
   public:
    explicit Step(Indexer& owner)
        : Napi::AsyncWorker(owner.Env()),
          promise_(owner.Env()),
          owner_(owner),
          reference_(Napi::Persistent(owner.Value())) {}
    Napi::Promise promise() const { return promise_.Promise(); }

   private:
    void Execute() override { done_ = owner_.indexer_->step(); }
    void OnOK() override { promise_.Resolve(Napi::Boolean::New(Env(), done_)); }
    void OnError(const Napi::Error& error) override {
      owner_.indexer_.reset();
      promise_.Reject(error.Value());
    }

    Napi::Promise::Deferred promise_;
    Indexer& owner_;
    Napi::ObjectReference reference_;  // so that the owner is not collected meanwhile
    bool done_ = false;
  };

  // step(): Promise<boolean>, true at the end. One at a time, and none after one that failed.
  Napi::Value step(const Napi::CallbackInfo&) {
    auto* const step = new Step(*this);
    step->Queue();
    return step->promise();
  }

  // finish(): fd of the index; the last call.
  Napi::Value finish(const Napi::CallbackInfo& info) {
    return addon::guarded(info.Env(), [&] {
      const std::unique_ptr<ZipIndexer> indexer = std::move(indexer_);
      return Napi::Number::New(info.Env(), indexer->finish().release());
    });
  }

  std::unique_ptr<ZipIndexer> indexer_;
};

}  // namespace

void exportZipIndexer(Napi::Env env, Napi::Object exports) { Indexer::define(env, exports); }

}  // namespace ublk
