#pragma once

/*
 * The only file that includes Xen's headers. They are C without `extern "C"`: included bare, the link passes and the
 * process dies at the first call. They also need the GNU dialect, and one needs stdint.h before it.
 */
#include <stdint.h>

extern "C" {
#include <xencall.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xenguest.h>
#include <xentoollog.h>
}

#include "compat.h"
