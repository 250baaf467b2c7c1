# SPDX-License-Identifier: Apache-2.0
# Mounts an image that Lamella wrote on a Windows host (Server 2022 or newer) and compares all that it shows with what
# Lamella says is in it: names, kinds, contents, attributes, four times, security descriptors, extended attributes,
# reparse data, alternate data streams, hard links. Prints a line for each difference; the exit code is 1 if there is one.
#
#   lamella cim verify DIR/NAME.cim --list NAME.jsonl     # on any host
#   pwsh tools/mount-cim.ps1 -Directory DIR -Name NAME.cim -List NAME.jsonl    # as administrator, on Windows
#
# A fork is mounted like any other image; its parents' regions must lie in the same directory.
param(
    [Parameter(Mandatory)] [string] $Directory,
    [Parameter(Mandatory)] [string] $Name,
    [Parameter(Mandatory)] [string] $List
)
Set-StrictMode -Version 3
$ErrorActionPreference = 'Stop'
Add-Type -TypeDefinition @'
using System;
using System.ComponentModel;
using System.IO;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Microsoft.Win32.SafeHandles;

public static class Cim {
    [DllImport("cimfs.dll", CharSet = CharSet.Unicode)]
    public static extern int CimMountImage(string directory, string name, uint flags, ref Guid volume);
    [DllImport("cimfs.dll")]
    public static extern int CimDismountImage(ref Guid volume);

    [DllImport("kernel32.dll", CharSet = CharSet.Unicode, SetLastError = true)]
    static extern SafeFileHandle CreateFileW(
        string path, uint access, uint share, IntPtr security, uint disposition, uint flags, IntPtr template);
    [DllImport("kernel32.dll", SetLastError = true)]
    static extern bool GetFileInformationByHandleEx(SafeFileHandle file, int kind, byte[] result, uint size);
    [DllImport("kernel32.dll", SetLastError = true)]
    static extern bool DeviceIoControl(
        SafeFileHandle file, uint code, IntPtr given, uint length, byte[] result, uint size, out uint done, IntPtr later);
    [DllImport("ntdll.dll")]
    static extern int NtQueryEaFile(
        SafeFileHandle file, long[] status, byte[] result, uint size, bool one, IntPtr list, uint length, IntPtr index,
        bool restart);
    [DllImport("advapi32.dll", SetLastError = true)]
    static extern bool GetKernelObjectSecurity(SafeFileHandle file, uint which, byte[] result, uint size, out uint needed);

    // The file itself, not what a reparse point leads to. READ_CONTROL, FILE_READ_EA, FILE_READ_ATTRIBUTES.
    public static SafeFileHandle Open(string path) {
        var file = CreateFileW(path, 0x20088, 7, IntPtr.Zero, 3, 0x02200000, IntPtr.Zero);
        if (file.IsInvalid) throw new Win32Exception();
        return file;
    }

    // Creation, access, write and change time as FILETIMEs, then attributes.
    public static long[] Basic(SafeFileHandle file) {
        var raw = new byte[40];
        if (!GetFileInformationByHandleEx(file, 0, raw, 40)) throw new Win32Exception();
        return new[] {
            BitConverter.ToInt64(raw, 0), BitConverter.ToInt64(raw, 8), BitConverter.ToInt64(raw, 16),
            BitConverter.ToInt64(raw, 24), BitConverter.ToUInt32(raw, 32) };
    }

    public static string Id(SafeFileHandle file) {
        var raw = new byte[24];
        if (!GetFileInformationByHandleEx(file, 18, raw, 24)) throw new Win32Exception();
        return Convert.ToBase64String(raw);
    }

    public static string Reparse(SafeFileHandle file) {
        var raw = new byte[65536];
        uint done;
        if (!DeviceIoControl(file, 0x900A8, IntPtr.Zero, 0, raw, 65536, out done, IntPtr.Zero)) return "";
        return Convert.ToBase64String(raw, 0, (int)done);
    }

    public static string Attributes(SafeFileHandle file) {
        var raw = new byte[65536];
        var status = new long[2];
        if (NtQueryEaFile(file, status, raw, 65536, false, IntPtr.Zero, 0, IntPtr.Zero, true) < 0) return "";
        return Convert.ToBase64String(raw, 0, (int)status[1]);
    }

    // Owner, group and access list in self-relative form.
    public static byte[] Security(SafeFileHandle file) {
        uint needed;
        GetKernelObjectSecurity(file, 7, new byte[0], 0, out needed);
        var raw = new byte[needed];
        if (!GetKernelObjectSecurity(file, 7, raw, needed, out needed)) throw new Win32Exception();
        return raw;
    }

    public static string Sha256(string path) {
        using (var stream = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.Read))
        using (var sum = SHA256.Create())
            return BitConverter.ToString(sum.ComputeHash(stream)).Replace("-", "").ToLowerInvariant();
    }
}
'@

$wrong = 0
function Differ([string] $what, [string] $path, $found, $expected) {
    Write-Output "$what  $path  found '$found', expected '$expected'"
    $script:wrong++
}
# Owner, group and access list as text, since the order of a descriptor's parts is free.
function Words([byte[]] $raw) {
    $sections = [System.Security.AccessControl.AccessControlSections] 'Owner, Group, Access'
    [System.Security.AccessControl.RawSecurityDescriptor]::new($raw, 0).GetSddlForm($sections)
}

$volume = [guid]::NewGuid()
$result = [Cim]::CimMountImage((Resolve-Path $Directory).Path, $Name, 0, [ref] $volume)
if ($result -lt 0) { throw ('CimMountImage failed: 0x{0:x8}' -f $result) }
try {
    $root = "\\?\Volume{$volume}"
    $expected = @{}
    $ids = @{}
    foreach ($line in [System.IO.File]::ReadLines((Resolve-Path $List).Path)) {
        $one = $line | ConvertFrom-Json
        $expected[$one.path] = $true
        $path = $root + $one.path.Replace('/', '\')
        try { $file = [Cim]::Open($path) } catch { Differ 'missing' $one.path $_.Exception.Message 'a file'; continue }
        try {
            if ($one.kind -eq 'link') {
                $id = [Cim]::Id($file)
                if ($ids[$one.target] -ne $id) { Differ 'hard link' $one.path $id "that of $($one.target)" }
                continue
            }
            $ids[$one.path] = [Cim]::Id($file)
            $basic = [Cim]::Basic($file)
            $names = 'creation_time', 'access_time', 'write_time', 'change_time'
            for ($n = 0; $n -lt 4; $n++) {
                if ($basic[$n] -ne $one.($names[$n])) { Differ $names[$n] $one.path $basic[$n] $one.($names[$n]) }
            }
            # NORMAL says that there is no other, and an image has no place for it.
            $attributes = $basic[4] -band -bnot 0x80
            if ($attributes -ne $one.attributes) { Differ 'attributes' $one.path $attributes $one.attributes }
            $found, $wanted = (Words ([Cim]::Security($file))), (Words ([convert]::FromBase64String($one.security)))
            if ($found -ne $wanted) { Differ 'security' $one.path $found $wanted }
            $found = [Cim]::Reparse($file)
            if ($found -ne $one.reparse) { Differ 'reparse' $one.path $found $one.reparse }
            $found = [Cim]::Attributes($file)
            if ($found -ne $one.extended_attributes) { Differ 'attributes' $one.path $found $one.extended_attributes }
        } finally { $file.Dispose() }
        if ($one.kind -eq 'file') {
            $found = (Get-Item -LiteralPath $path -Force).Length
            if ($found -ne $one.size) { Differ 'size' $one.path $found $one.size }
            $found = [Cim]::Sha256($path)
            if ($found -ne $one.sha256) { Differ 'content' $one.path $found $one.sha256 }
        }
        if ($one.reparse -ne '') { continue }
        $streams = @(Get-Item -LiteralPath $path -Stream * -Force -ErrorAction SilentlyContinue |
            Where-Object Stream -ne ':$DATA' | ForEach-Object Stream | Sort-Object)
        $wanted = @($one.streams.PSObject.Properties | ForEach-Object Name | Sort-Object)
        if (($streams -join '|') -ne ($wanted -join '|')) { Differ 'streams' $one.path "$streams" "$wanted" }
        foreach ($stream in $wanted) {
            if ($streams -notcontains $stream) { continue }
            $found = [Cim]::Sha256("${path}:$stream")
            if ($found -ne $one.streams.$stream) { Differ "stream $stream" $one.path $found $one.streams.$stream }
        }
    }
    $todo = [System.Collections.Generic.Stack[string]]::new()
    $todo.Push('')
    while ($todo.Count) {
        $directory = $todo.Pop()
        foreach ($item in Get-ChildItem -LiteralPath ($root + $directory + '\') -Force) {
            $path = "$directory\$($item.Name)"
            if (-not $expected.ContainsKey($path.Replace('\', '/'))) { Differ 'extra' $path 'a file' 'nothing' }
            if ($item.PSIsContainer -and -not $item.LinkType) { $todo.Push($path) }
        }
    }
} finally {
    [void] [Cim]::CimDismountImage([ref] $volume)
}
Write-Output "$($expected.Count) files compared, $wrong differences"
exit [int] ($wrong -gt 0)
