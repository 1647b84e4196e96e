{
  "variables": {
    "variables": {
      "xen_modules": "xencontrol xenguest xenforeignmemory xenevtchn xencall xentoollog"
    },
    "xen_modules": "<(xen_modules)",
    "have_xen%": "<!(uname -m | grep -q x86_64 && pkg-config --exists <(xen_modules) 2>/dev/null && echo 1 || echo 0)"
  },
  "targets": [
    {
      "target_name": "xen_migration",
      "sources": [
        "native/addon.cc",
        "native/blocking_fd.cc",
        "native/error.cc",
        "native/lock.cc",
        "native/probe.cc",
        "native/region.cc",
        "native/signal.cc",
        "native/watch.cc"
      ],
      "include_dirs": [
        "<!(node -p \"require('node-addon-api').include_dir\")"
      ],
      "defines": [
        "NAPI_VERSION=8",
        "NAPI_CPP_EXCEPTIONS",
        "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
        "XM_HAVE_XEN=<(have_xen)"
      ],
      "cflags_cc": ["-fexceptions", "-fvisibility=hidden", "-Wall", "-Wextra"],
      "cflags_cc!": ["-fno-exceptions"],
      "ldflags": ["-Wl,-z,now"],
      "conditions": [
        ["have_xen==1", {
          "sources": [
            "native/arguments.cc",
            "native/call_log.cc",
            "native/create.cc",
            "native/domain.cc",
            "native/evtchn.cc",
            "native/grant.cc",
            "native/handles.cc",
            "native/hvm.cc",
            "native/hypervisor.cc",
            "native/job.cc",
            "native/logdirty.cc",
            "native/memory.cc",
            "native/policy.cc",
            "native/pv.cc",
            "native/xen_handle.cc"
          ],
          "defines": ["XM_XEN_VERSION=<!(pkg-config --modversion xencontrol)"],
          "cflags_cc": ["<!@(pkg-config --cflags <(xen_modules))"],
          "libraries": ["<!@(pkg-config --libs <(xen_modules))"]
        }],
        ["OS!='linux'", {
          "type": "none"
        }]
      ]
    }
  ]
}
