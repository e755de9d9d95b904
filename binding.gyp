{
  'variables': {
    'zygote_sources': [
      'backends/null/null.cpp',
      'backends/ram/ram.cpp',
      'backends/registry.cpp',
      'src/native/channel.cpp',
      'src/native/control_process.cpp',
      'src/native/control_ring.cpp',
      'src/native/process_setup.cpp',
      'src/native/queue.cpp',
      'src/native/queue_process.cpp',
      'src/native/zygote.cpp',
      'src/native/zygote_preload.cpp',
    ],
  },
  'target_defaults': {
    'cflags_cc!': ['-std=gnu++17', '-fno-rtti', '-fno-exceptions'],
    'cflags_cc': ['-std=c++20', '-fexceptions', '-Wall', '-Wextra', '-Wno-missing-field-initializers'],
    'include_dirs': ['src/native'],
  },
  'targets': [
    {
      'target_name': 'ublk',
      'dependencies': ["<!(node -p \"require('node-addon-api').targets\"):node_addon_api_except"],
      'defines': ['NAPI_VERSION=9'],
      'sources': [
        'src/native/addon/addon.cpp',
        'src/native/addon/js_queue.cpp',
        'src/native/addon/process_watch.cpp',
        'src/native/addon/shared_pages.cpp',
        'src/native/addon/system.cpp',
        'src/native/addon/zygote_channel.cpp',
        'src/native/channel.cpp',
        'src/native/control_ring.cpp',
        'src/native/process_setup.cpp',
        'src/native/queue.cpp',
      ],
      'libraries': ['-l:liburing.a'],
    },
    {
      'target_name': 'zygote',
      'type': 'shared_library',
      'product_prefix': '',
      'sources': ['<@(zygote_sources)'],
      'libraries': ['-l:liburing.a'],
      'cflags_cc': ['-fvisibility=hidden'],
    },
    {
      # The zygote with fault points, which tests put in the place of the real one. Not shipped.
      'target_name': 'zygote_faults',
      'type': 'shared_library',
      'product_prefix': '',
      'defines': ['UBLK_FAULT_POINTS'],
      'sources': ['<@(zygote_sources)', 'src/native/fault_point.cpp'],
      'libraries': ['-l:liburing.a'],
    },
  ],
}
