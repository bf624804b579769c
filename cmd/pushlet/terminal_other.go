//go:build !(linux || darwin || freebsd)

package main

import "os"

// terminalWidth takes nothing for a terminal here: no colours, and no line that is written over.
func terminalWidth(*os.File) (columns int, terminal bool) { return 0, false }
