// The Go original behind a C interface, so that it runs in the benchmark's own process, round by round with ours.
package main

import "C"

import (
	"strings"
	"time"

	"github.com/distribution/reference"
)

var (
	given []string
	sink  string
)

//export GoLines
func GoLines(joined *C.char) {
	given = strings.Split(C.GoString(joined), "\n")
}

// GoCanonicalRound is one pass over the lines, in nanoseconds.
//
//export GoCanonicalRound
func GoCanonicalRound() int64 {
	start := time.Now()
	for _, line := range given {
		named, err := reference.ParseNormalizedNamed(line)
		if err != nil {
			sink = line
			continue
		}
		sink = reference.TagNameOnly(named).String()
	}
	return time.Since(start).Nanoseconds()
}

func main() {}
