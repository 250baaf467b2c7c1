# SPDX-License-Identifier: Apache-2.0
# Mounts an image that Lamella wrote on a Windows host (Server 2022 or newer) and compares it with what Lamella says is in it.
#
#   lamella find cim:DIR/NAME.cim --json > NAME.json     # on any host
#   pwsh tools/mount-cim.ps1 -Directory DIR -Name NAME.cim -Listing NAME.json    # as administrator, on Windows
param(
    [Parameter(Mandatory)] [string] $Directory,
    [Parameter(Mandatory)] [string] $Name,
    [Parameter(Mandatory)] [string] $Listing
)
$ErrorActionPreference = 'Stop'
Add-Type -Namespace Lamella -Name CimFs -MemberDefinition @'
[DllImport("cimfs.dll", CharSet = CharSet.Unicode)]
public static extern int CimMountImage(string directory, string name, uint flags, ref System.Guid volume);
[DllImport("cimfs.dll")]
public static extern int CimDismountImage(ref System.Guid volume);
'@
$volume = [guid]::NewGuid()
$result = [Lamella.CimFs]::CimMountImage((Resolve-Path $Directory).Path, $Name, 0, [ref] $volume)
if ($result -lt 0) { throw ('CimMountImage failed: 0x{0:x8}' -f $result) }
$wrong = 0
try {
    $root = "\\?\Volume{$volume}"
    foreach ($entry in Get-Content $Listing -Raw | ConvertFrom-Json) {
        $path = $root + $entry.path.Replace('/', '\')
        $item = Get-Item -LiteralPath $path -Force -ErrorAction SilentlyContinue
        if ($null -eq $item) { Write-Output "missing    $($entry.path)"; $wrong++; continue }
        if (($entry.kind -eq 'directory') -ne $item.PSIsContainer -and $entry.kind -ne 'symlink') {
            Write-Output "kind       $($entry.path)"; $wrong++
        }
        if ($entry.kind -eq 'file' -and $item.Length -ne $entry.size) {
            Write-Output "size       $($entry.path): $($item.Length), not $($entry.size)"; $wrong++
        }
    }
} finally {
    [void] [Lamella.CimFs]::CimDismountImage([ref] $volume)
}
Write-Output "$wrong differences"
exit [int] ($wrong -gt 0)
