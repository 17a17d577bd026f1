// Command sbom lists what a Go program was built from, as CycloneDX: every
// module with its version and checksum, and the Go that built it. All of it is
// read from the program itself.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(path string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", " ")
	return e.Encode(list(info, sha256.Sum256(program), os.Getenv("PLATTER_VERSION"), os.Getenv("SOURCE_DATE_EPOCH")))
}

type object = map[string]any

// list is the document. It depends on the program and its version alone.
func list(info *debug.BuildInfo, sum [sha256.Size]byte, version, epoch string) object {
	refs := []string{"go"}
	components := []object{{
		"bom-ref": "go", "type": "platform", "name": "go", "version": strings.TrimPrefix(info.GoVersion, "go"),
		"purl": "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go"),
	}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		ref := "pkg:golang/" + m.Path + "@" + m.Version
		refs = append(refs, ref)
		c := object{"bom-ref": ref, "type": "library", "name": m.Path, "version": m.Version, "purl": ref}
		if h, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(h) == sha256.Size {
			c["properties"] = []object{{"name": "go:sum", "value": m.Sum}}
		}
		components = append(components, c)
	}
	main := object{
		"bom-ref": "platter", "type": "application", "name": "platter", "version": version,
		"hashes": []object{{"alg": "SHA-256", "content": hex.EncodeToString(sum[:])}},
	}
	doc := object{
		"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
		"metadata":   object{"component": main, "tools": object{"components": []object{{"type": "application", "name": "platter sbom"}}}},
		"components": components, "dependencies": []object{{"ref": "platter", "dependsOn": refs}},
	}
	var seconds int64
	if _, err := fmt.Sscan(epoch, &seconds); err == nil {
		doc["metadata"].(object)["timestamp"] = time.Unix(seconds, 0).UTC().Format(time.RFC3339)
	}
	return doc
}
