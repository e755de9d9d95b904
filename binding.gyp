{
  'variables': {
    # scripts/build-native sets it; a package has no sources of tests.
    'tests%': 0,
    # What serves a queue, in a queue process and in a node for a backend in JavaScript.
    'queue_sources': [
      'backends/file/file.cpp',
      'backends/null/null.cpp',
      'backends/ram/ram.cpp',
      'backends/registry.cpp',
      'backends/zip/index.cpp',
      'backends/zip/zip.cpp',
      'src/native/common/cached_path.cpp',
      'src/native/common/channel.cpp',
      'src/native/common/control_ring.cpp',
      'src/native/common/peer.cpp',
      'src/native/common/shared_page.cpp',
      'src/native/queue/faults.cpp',
      'src/native/queue/process_setup.cpp',
      'src/native/queue/queue.cpp',
      'src/native/common/user.cpp',
    ],
    'zygote_sources': [
      'src/native/zygote/control_process.cpp',
      'src/native/zygote/held_generation.cpp',
      'src/native/zygote/mount_namespace.cpp',
      'src/native/zygote/nursery.cpp',
      'src/native/queue/queue_process.cpp',
      'src/native/zygote/zygote.cpp',
      'src/native/zygote/zygote_preload.cpp',
    ],
  },
  'target_defaults': {
    'cflags_cc!': ['-std=gnu++17', '-fno-rtti', '-fno-exceptions'],
    'cflags_cc': ['-std=c++20', '-fexceptions', '-Wall', '-Wextra', '-Wno-missing-field-initializers'],
    'include_dirs': ['src/native'],
    # Node exports a zlib of its own, which would otherwise take the place of ours.
    'ldflags': ['-Wl,--exclude-libs,libz.a'],
  },
  'targets': [
    {
      'target_name': 'ublk',
      'dependencies': ["<!(node -p \"require('node-addon-api').targets\"):node_addon_api_except"],
      'defines': ['NAPI_VERSION=9'],
      'sources': [
        '<@(queue_sources)',
        'backends/exports.cpp',
        'backends/zip/indexer.cpp',
        'src/native/addon/addon.cpp',
        'src/native/addon/accounts.cpp',
        'src/native/addon/block_devices.cpp',
        'src/native/addon/close_watch.cpp',
        'src/native/addon/fault_area.cpp',
        'src/native/addon/files.cpp',
        'src/native/addon/javascript_stack.cpp',
        'src/native/addon/js_queue.cpp',
        'src/native/addon/message_channel.cpp',
        'src/native/addon/native_disk.cpp',
        'src/native/addon/notify.cpp',
        'src/native/addon/process_watch.cpp',
        'src/native/addon/shared_pages.cpp',
        'src/native/addon/system.cpp',
        'src/native/addon/zygote_channel.cpp',
      ],
      'libraries': ['-l:liburing.a', '-l:libz.a'],
    },
    {
      'target_name': 'zygote',
      'type': 'shared_library',
      'product_prefix': '',
      'sources': ['<@(queue_sources)', '<@(zygote_sources)'],
      'libraries': ['-l:liburing.a', '-l:libz.a'],
      'cflags_cc': ['-fvisibility=hidden'],
    },
  ],
  'conditions': [
    ['tests==1', {
      'targets': [
        {
          # The zygote with fault points, which tests put in the place of the real one. Not shipped.
          'target_name': 'zygote_faults',
          'type': 'shared_library',
          'product_prefix': '',
          'defines': ['UBLK_FAULT_POINTS'],
          'sources': ['<@(queue_sources)', '<@(zygote_sources)', 'src/native/common/fault_point.cpp'],
          'libraries': ['-l:liburing.a', '-l:libz.a'],
        },
        {
          # Somebody else's device, for tests. Not shipped.
          'target_name': 'unprivileged_device',
          'type': 'executable',
          'sources': ['test/vm/unprivileged_device.cpp', 'src/native/common/control_ring.cpp'],
          'libraries': ['-l:liburing.a'],
        },
      ],
    }],
  ],
}
